"""What comes from outside while a run is under way: Ctrl-C, and a disk that is full or read-only."""

import errno
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from temper.core.errors import HostError

REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "choose a folder that may be written",
    errno.EACCES: "choose a folder that this user may write",
}


@contextmanager
def interruptible(tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C end what stands inside, which may ask whether it was pressed; the next is Python's own."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell("stopping: the best so far will be proven; press Ctrl-C again to leave now and --resume later")
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, press)
    except ValueError:  # not the main thread: Ctrl-C arrives elsewhere
        yield lambda: False
        return
    try:
        yield lambda: pressed
    except KeyboardInterrupt:
        if not pressed:
            raise
    finally:
        # A shell lets what it starts in the background ignore the signal; who has sent it once may send it again.
        ignored = pressed and before == signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler if ignored else before)


@contextmanager
def host_errors() -> Iterator[None]:
    """Say in one sentence that the disk is full or may not be written. Raises: HostError."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise HostError(
            f"{error.strerror}: {error.filename or 'the run folder'}: {REMEDIES[error.errno]}; what was done is kept, "
            "so --resume goes on from here"
        ) from error
    except sqlite3.OperationalError as error:
        raise HostError(f"the journal cannot be written: {error}. Free some space, then go on with --resume") from error
