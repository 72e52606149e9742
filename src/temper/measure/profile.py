"""The profile of an artifact: its kernels, by the runtime's own clock, beside whole calls timed without the profile."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from temper.core.explanation import Kernel
from temper.core.goal import Conditions
from temper.hardware.cores import lease
from temper.measure.loaded import LOAD_S, loaded

LONGEST_S = 2.0
FEWEST, MOST = 10, 300
"""Calls that are profiled: as many as fit into the time, within these bounds."""
PROFILE_S = 900.0
"""The longest that profiling may take: a runtime may have to compile the model once more for it."""


def profile(
    artifact: Path, inputs: Sequence[Path], conditions: Conditions, *, log: Path, memory_bytes: int
) -> tuple[float, tuple[Kernel, ...]]:
    """Seconds of a whole call, the median without profiling, and the kernels in order of execution.

    Raises: WorkerError if the process fails.
    """
    with (
        lease(conditions.threads) as cores,
        loaded(artifact, inputs, conditions, log=log, memory_bytes=memory_bytes, cores=cores) as worker,
    ):
        worker.call("block", time_s=LOAD_S, calls=FEWEST)
        call_s = float(np.median(worker.call("block", time_s=LOAD_S, calls=FEWEST)["seconds"]))
        calls = int(np.clip(LONGEST_S / call_s, FEWEST, MOST))
        call_s = float(np.median(worker.call("block", time_s=LOAD_S, calls=calls)["seconds"]))
        kernels = worker.call("profile", time_s=PROFILE_S, threads=conditions.threads, calls=calls)
    return call_s, tuple(Kernel(**{**each, "covers": tuple(each["covers"])}) for each in kernels)
