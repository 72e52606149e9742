"""Conversions of graphs that are made once: a graph of equal content is not converted again for another runtime.

Inside `kept_in(folder)`, `converted` looks for what was made of an equal graph in that folder, which belongs to whoever
opened it and goes with it.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.graph.storage import GRAPH_FILE, WEIGHTS_FILE, save
from temper.hardware.cache import made_once

KEPT = 8
"""How many conversions stay: equal graphs come soon after one another, and models are large."""

_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Keep conversions in this folder, and take them from there, until the block ends."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def converted(graph: Graph, file: Path, convert: Callable[[Path], None]) -> None:
    """Write `file` with `convert`, or copy what was made before of an equal graph under the same file name.

    Raises: what `convert` raises.
    """
    folder = _FOLDER.get()
    key = digest(graph) if folder else None
    if folder is None or key is None:
        convert(file)
    else:
        shutil.copyfile(made_once(folder / f"{key}-{file.name}", convert, kept=KEPT), file)


def digest(graph: Graph) -> str | None:
    """Sha256 of all that the graph is: operators, tensors, schema and example. None if it cannot be stored."""
    with tempfile.TemporaryDirectory(prefix="temper-digest-") as scratch:
        try:
            save(graph, Path(scratch))
        except TrialError:
            return None
        return digest_of_stored(Path(scratch))


def digest_of_stored(folder: Path) -> str:
    """The same for a graph that `temper.graph.storage.save` wrote into the folder."""
    found = hashlib.sha256()
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()
