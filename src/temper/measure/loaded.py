"""A measuring process with one artifact loaded and its inputs prepared: what latency, memory and energy start from."""

import time
from collections.abc import Sequence
from pathlib import Path

from temper.core.errors import WorkerError
from temper.core.goal import Conditions
from temper.measure.worker import Worker

LOAD_S = 120.0
"""The longest that loading an artifact or one block of calls may take where the whole has no limit."""


class Deadline:
    """When a measurement that consists of many commands must have ended: so many seconds from now, or never."""

    def __init__(self, time_s: float | None = None) -> None:
        self._time_s = time_s
        self._began = time.monotonic()

    def left(self) -> float:
        """The seconds that the next command may take. Raises: WorkerError if there are none."""
        if self._time_s is None:
            return LOAD_S
        left = self._began + self._time_s - time.monotonic()
        if left <= 0:
            raise WorkerError(f"the measurement did not end within its limit of {self._time_s:.0f} s: it was stopped")
        return left


def loaded(
    artifact: Path,
    inputs: Sequence[Path],
    conditions: Conditions,
    *,
    log: Path,
    memory_bytes: int,
    cores: tuple[int, ...] = (),
    time_s: float | None = None,
) -> Worker:
    """Start the process; the caller closes it. Without input files the inputs are made up to fit the schema.

    Raises: WorkerError if it fails or takes longer than `time_s` in all.
    """
    deadline = Deadline(time_s)
    worker = Worker(
        "temper.measure.runner", log=log, memory_bytes=memory_bytes, cores=cores, threads=conditions.threads
    )
    try:
        worker.call("load", time_s=deadline.left(), folder=str(artifact), threads=conditions.threads)
        files = [str(file) for file in inputs]
        batch, length = conditions.batch, conditions.length
        worker.call("prepare", time_s=deadline.left(), inputs=files, batch=batch, length=length)
    except BaseException:
        worker.close()
        raise
    return worker
