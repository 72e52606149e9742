"""An exclusive lease of cores: two measurements on one machine never overlap."""

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from temper.core.errors import HostError, UsageError

POLL_S, PATIENCE_S = 0.1, 2.0
"""How often a taken lease is asked for, and how long without a word."""


def available() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def working_threads() -> int:
    """Threads for work that is not timed: half of the cores, because torch crawls when it shares one it counts on."""
    return max(1, len(available()) // 2)


def check(count: int) -> None:
    """Raise UsageError unless this process may use so many cores."""
    cores = available()
    if count > len(cores):
        raise UsageError(f"{count} threads were asked for, and this process may use {len(cores)} cores: ask for fewer")


@contextmanager
def lease(count: int) -> Iterator[tuple[int, ...]]:
    """The last `count` cores, for as long as no other process of this user holds the lease.

    The last ones, because the first core serves most interrupts. Raises: UsageError if there are not so many;
    HostError if the lock cannot be opened.
    """
    check(count)
    cores = available()
    lock = _opened(_lock_file())
    try:
        _acquire(lock)
        yield cores[-count:]
    finally:
        os.close(lock)


def _lock_file() -> Path:
    """In the user's own folder for such things, or in the one for everybody."""
    own = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")
    folder = own if own.is_dir() and os.access(own, os.W_OK) else Path(tempfile.gettempdir())
    return folder / f"temper-cores-{os.getuid()}.lock"


def _opened(file: Path) -> int:
    """The file's descriptor. Others may write to the folder: no link is followed, and nothing is truncated."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(f"the lock of the cores, {file}, cannot be opened: {error.strerror}. Remove it") from error


def _acquire(lock: int) -> None:
    """Wait until nobody else holds the lock, and say so once when that takes long."""
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told and time.monotonic() - began > PATIENCE_S:
                print("waiting for another measurement on this machine to end", file=sys.stderr, flush=True)
                told = True
            time.sleep(POLL_S)
