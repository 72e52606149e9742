"""Peak memory of a fresh process that loads an artifact and runs it under the conditions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from temper.core.goal import Conditions
from temper.core.measurement import Measurement
from temper.measure.loaded import Deadline, loaded

REPEATS = 3
CALLS = 20
CONFIDENCE = 1 - 2 ** (1 - REPEATS)
"""With which the extremes of so many processes enclose the median of all: it is missed if all lie on one side of it."""


def peak_memory(
    artifact: Path,
    inputs: Sequence[Path],
    conditions: Conditions,
    *,
    log: Path,
    memory_bytes: int,
    time_s: float | None = None,
) -> Measurement:
    """Resident bytes at the peak, Python and NumPy included: the median of three fresh processes, their extremes.

    Raises: WorkerError if a process fails, or all together take longer than `time_s`.
    """
    deadline = Deadline(time_s)
    peaks = []
    for _ in range(REPEATS):
        left = None if time_s is None else deadline.left()
        with loaded(artifact, inputs, conditions, log=log, memory_bytes=memory_bytes, time_s=left) as worker:
            worker.call("block", time_s=deadline.left(), calls=CALLS)
            peaks.append(worker.call("peak_memory", time_s=deadline.left()))
    return Measurement(
        value=float(np.median(peaks)),
        lower=min(peaks),
        upper=max(peaks),
        unit="B",
        samples=REPEATS,
        confidence=CONFIDENCE,
        details={"interval": f"extremes of {REPEATS} processes"},
    )
