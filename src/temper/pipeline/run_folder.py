"""The folder of a run: where everything lies that one `optimize` reads and writes."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from temper.core.artifact import REPORT
from temper.core.errors import HostError, UsageError
from temper.core.schema import Array

JOURNAL, LOCK = "journal.sqlite", ".lock"


@dataclass(frozen=True)
class RunFolder:
    """`artifact/` is what ships, `baseline/` what it is compared with; the rest is the run's own."""

    root: Path

    @property
    def journal(self) -> Path:
        return self.root / JOURNAL

    @property
    def artifact(self) -> Path:
        return self.root / "artifact"

    @property
    def baseline(self) -> Path:
        return self.root / "baseline"

    @property
    def report(self) -> Path:
        return self.root / REPORT

    @property
    def log(self) -> Path:
        return self.root / "workers.log"

    @property
    def graph(self) -> Path:
        return self.root / "work" / "graph"

    @property
    def checkpoints(self) -> Path:
        return self.root / "work" / "checkpoints"

    def trial(self, number: int) -> Path:
        return self.root / "work" / "trials" / f"{number:04d}"

    def stored(self, part: str, name: str) -> list[Path]:
        """The files of one group of arrays, such as the `input` arrays of the `proof` part."""
        return sorted(
            (self.root / "work" / part).glob(f"{name}_*.npy"), key=lambda file: int(file.stem.rsplit("_")[-1])
        )

    def store(self, part: str, name: str, arrays: Sequence[Array]) -> list[Path]:
        """Write a group of arrays, one file each."""
        folder = self.root / "work" / part
        folder.mkdir(parents=True, exist_ok=True)
        for index, array in enumerate(arrays):
            np.save(folder / f"{name}_{index}.npy", array, allow_pickle=False)
        return self.stored(part, name)

    def predictions(self, count: int) -> list[Path]:
        """The files of the shipped artifact's outputs on the proof part, which `verify` compares with."""
        folder = self.root / "predictions"
        folder.mkdir(exist_ok=True)
        return [folder / f"output_{index}.npy" for index in range(count)]

    def fresh(self, folder: Path) -> Path:
        """That folder of the run, empty."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process. Raises: UsageError if another one works on it."""
        with (self.root / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"another process is working on the run in {self.root}: wait until it ends") from None
            yield

    def tidy(self) -> None:
        """Remove what only the search needed: stored examples, graph and trial artifacts."""
        shutil.rmtree(self.root / "work", ignore_errors=True)


def opened(root: Path, *, resume: bool) -> RunFolder:
    """The folder of a new run, or that of the run to resume.

    Raises: UsageError if it exists and the run is new, or holds no run to resume; HostError if it cannot be written.
    """
    folder = RunFolder(root)
    begun = folder.journal.exists() or (root / LOCK).exists()
    if resume and not begun:
        raise UsageError(f"{root} holds no run to resume: there is no {JOURNAL} in it. Leave out --resume to start one")
    if not resume and root.exists() and (not root.is_dir() or any(root.iterdir())):
        hint = "add --resume to go on with the run in it, or choose another folder" if begun else ""
        raise UsageError(f"{root} exists and is not empty: {hint or 'choose another folder'}")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"{root} cannot be made: {error.strerror}. Choose a folder that may be written") from error
    if not os.access(root, os.W_OK):
        raise HostError(f"{root} is read-only for this user: choose a folder that may be written")
    return folder
