"""The user's cache folder: what is expensive to find out or to make once more, and can always be made again."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT = 64
"""How many files of one kind stay; the ones that were not used for longest go first."""


def user_cache() -> Path:
    """`TEMPER_CACHE`, or `~/.cache/temper`: a folder of the user's own, which nobody else may write to."""
    folder = Path(os.environ.get("TEMPER_CACHE") or Path.home() / ".cache" / "temper")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def made_once(file: Path, make: Callable[[Path], None], *, kept: int = KEPT) -> Path:
    """The file, written by `make(unfinished)` if it is not there: processes that want the same one wait for the first.

    Of the files beside it that end alike, the `kept` newest in use stay.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(file.parent / f".{file.stem}.lock"):
        if not file.exists():
            unfinished = file.with_name(f"unfinished-{os.getpid()}-{file.name}")
            try:
                make(unfinished)
                unfinished.replace(file)
            finally:
                unfinished.unlink(missing_ok=True)
        os.utime(file)
    _evict(file, kept)
    return file


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _evict(newest: Path, kept: int) -> None:
    ages = {}
    for each in newest.parent.glob(f"*{newest.suffix}"):
        try:
            ages[each] = each.stat().st_mtime
        except FileNotFoundError:  # another process removed it
            continue
    for file in sorted(ages, key=ages.__getitem__, reverse=True)[kept:]:
        file.unlink(missing_ok=True)
        (file.parent / f".{file.stem}.lock").unlink(missing_ok=True)
