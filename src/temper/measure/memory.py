"""Peak memory of a fresh process that loads an artifact and runs it under the conditions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from temper.core.goal import Conditions
from temper.core.measurement import Measurement
from temper.measure.loaded import LOAD_S, loaded

REPEATS = 3
CALLS = 20


def peak_memory(
    artifact: Path, inputs: Sequence[Path], conditions: Conditions, *, log: Path, memory_bytes: int
) -> Measurement:
    """Resident bytes at the peak, Python and NumPy included: the median of three fresh processes, their extremes."""
    peaks = []
    for _ in range(REPEATS):
        with loaded(artifact, inputs, conditions, log=log, memory_bytes=memory_bytes) as worker:
            worker.call("block", time_s=LOAD_S, calls=CALLS)
            peaks.append(worker.call("peak_memory", time_s=LOAD_S))
    return Measurement(value=float(np.median(peaks)), lower=min(peaks), upper=max(peaks), unit="B", samples=REPEATS)
