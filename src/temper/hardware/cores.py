"""An exclusive lease of cores: two measurements on one machine never overlap."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from temper.core.errors import UsageError


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

    The last ones, because the first core serves most interrupts. Raises: UsageError if there are not so many.
    """
    check(count)
    cores = available()
    file = Path(tempfile.gettempdir()) / f"temper-cores-{os.getuid()}.lock"
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cores[-count:]
