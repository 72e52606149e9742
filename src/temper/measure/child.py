"""The child's side of a worker process: read a command, run its handler, write the answer, one JSON line each."""

import ctypes
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Handler = Callable[..., Any]
_answers: list[TextIO] = []
"""Where answers go, while commands are served."""


def tell(line: str) -> None:
    """Send the parent a line of progress ahead of the answer."""
    _send({"progress": line})


def _send(message: Mapping[str, Any]) -> None:
    for stream in _answers:
        stream.write(json.dumps(message) + "\n")
        stream.flush()


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer commands from standard input until it closes.

    Standard output is kept for the answers alone: whatever a library prints goes to standard error, the log.
    """
    _die_with_parent()
    _answers.append(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    for line in sys.stdin:
        if _parent_is_gone():
            return
        command = json.loads(line)
        try:
            answer = {"value": handlers[command["command"]](**command["arguments"])}
        except BaseException as error:  # noqa: BLE001 (every failure is the parent's to judge)
            traceback.print_exc()
            answer = {"error": type(error).__name__, "message": str(error), "errno": getattr(error, "errno", None)}
        _send(answer)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _parent_is_gone() -> bool:
    """Whether the other end of standard input is closed: the parent died before this process asked to die with it."""
    if not hasattr(select, "poll"):
        return False
    watch = select.poll()
    watch.register(0, select.POLLHUP)
    return any(event & select.POLLHUP for _, event in watch.poll(0))
