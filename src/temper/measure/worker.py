"""The parent's side of a worker process: send a command, wait within limits of time and memory, read the answer."""

import contextlib
import errno
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from temper.core import errors
from temper.core.errors import HostError, TemperError, WorkerError

POLL_S = 0.1
GRACE_S = 5.0
"""How long a process that hung up may take to end."""
LAST_LINES, LOG_TAIL_BYTES = 4, 8192
"""What of the log stands in the message when a process dies."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
HOST_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Worker:
    """One child process that runs `python -m module` and answers commands.

    It is pinned to `cores`, writes what it prints to `log`, and is killed when one command takes longer than its
    time or when its resident memory passes `memory_bytes`. A worker that failed is closed and cannot be used again.
    """

    def __init__(
        self, module: str, *, log: Path, memory_bytes: int, cores: tuple[int, ...] = (), threads: int = 0
    ) -> None:
        self.memory_bytes = memory_bytes
        self.log = log
        environment = dict(os.environ)
        if threads:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        with log.open("ab") as stream:
            # A session of its own: Ctrl-C is the parent's to handle.
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment,
                start_new_session=True,
            )
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, cores)
        assert self._process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._received = b""

    def call(
        self, command: str, *, time_s: float, tell: Callable[[str], None] = lambda line: None, **arguments: Any
    ) -> Any:
        """The handler's answer; `tell` receives its lines of progress.

        Raises: WorkerError if the process crashed, hung past `time_s` or passed its memory limit; the TrialError,
        MissingExtra or other error of temper that the handler raised; HostError if the disk is full or read-only.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            self._process.stdin.flush()
            deadline = time.monotonic() + time_s
            while "progress" in (answer := json.loads(self._line(command, time_s, deadline))):
                tell(answer["progress"])
        except (BrokenPipeError, EOFError):
            raise WorkerError(self._obituary(command)) from None
        except KeyboardInterrupt:
            # Its answer would be taken for that of the next command.
            self._kill()
            raise
        if "error" in answer:
            raise _as_error(answer, command)
        return answer["value"]

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Kill the process and wait until it is gone."""
        self._selector.close()
        self._kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                # A command that the process did not live to read is still in the buffer.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kill(self) -> None:
        """Kill the process and wait until it is gone: until then it would still count as alive."""
        self._process.kill()
        self._process.wait()

    def _line(self, command: str, time_s: float, deadline: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            if self._selector.select(POLL_S):
                received = os.read(self._process.stdout.fileno(), 1 << 20)
                if not received:
                    raise EOFError
                self._received += received
            elif time.monotonic() > deadline:
                self._kill()
                raise WorkerError(f"{command!r} did not end within its limit of {time_s:.0f} s: it was stopped")
            else:
                self._check_memory(command)
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _check_memory(self, command: str) -> None:
        try:
            used = psutil.Process(self._process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            return
        if used > self.memory_bytes:
            self._kill()
            raise WorkerError(
                f"{command!r} passed its memory limit: {used / 2**30:.2f} GiB of {self.memory_bytes / 2**30:.2f} GiB"
            )

    def _obituary(self, command: str) -> str:
        try:
            code = self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:  # it closed its end and lives on, of no use to anybody
            self._kill()
            code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the process {how} during {command!r}; its last words: {self._last_words() or 'none'} (log: {self.log})"

    def _last_words(self) -> str:
        """The last lines of the log, in one: the log itself may lie in a folder that is gone when this is read."""
        written = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        lines = [" ".join(line.split()) for line in written.splitlines() if line.strip()]
        return " | ".join(line[:200] for line in lines[-LAST_LINES:])


def _as_error(answer: dict[str, Any], command: str) -> TemperError:
    kind = getattr(errors, answer["error"], None)
    if isinstance(kind, type) and issubclass(kind, TemperError):
        return kind(answer["message"])
    if answer["errno"] in HOST_ERRNOS:
        return HostError(f"{answer['message']}: free some space or choose another folder, then run again with --resume")
    if answer["error"] == "MemoryError":
        return WorkerError(f"{command!r} ran out of memory: {answer['message']}")
    return WorkerError(f"{command!r} failed with {answer['error']}: {answer['message'].strip()[:500]}")
