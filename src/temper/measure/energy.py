"""Energy of the processor package while an artifact runs, where the machine counts it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from temper.core.goal import Conditions
from temper.core.measurement import Measurement
from temper.hardware.cores import lease
from temper.measure.loaded import Deadline, loaded
from temper.measure.statistics import median_interval

POWERCAP = Path("/sys/class/powercap")
BLOCKS, BLOCK_S = 10, 0.5


@dataclass(frozen=True, kw_only=True)
class EnergyCounters:
    """The package counters of Intel's and AMD's running average power limit (RAPL), which Linux shows as files.

    They count the whole package, idle power and other programs included, in microjoules that wrap around.
    Reference: Linux kernel documentation, power/powercap.
    """

    packages: tuple[Path, ...]

    @classmethod
    def find(cls, root: Path = POWERCAP) -> "EnergyCounters":
        """The packages whose counters this user may read; none on most virtual machines."""
        found = (folder for folder in sorted(root.glob("intel-rapl:*")) if folder.name.count(":") == 1)
        return cls(packages=tuple(folder for folder in found if _readable(folder / "energy_uj")))

    def measure(self, block: Callable[[], int]) -> Measurement:
        """Joules a call: `block` runs the model for a while and says how many calls that were. The median over blocks.

        Without counters the measurement says `unavailable`, and can satisfy no limit.
        """
        if not self.packages:
            why = {"reason": "this machine shows no energy counters (RAPL) to this user"}
            nan = float("nan")
            return Measurement(value=nan, lower=nan, upper=nan, unit="J", samples=0, status="unavailable", details=why)
        per_call = []
        for _ in range(BLOCKS):
            before = {folder: _counted(folder) for folder in self.packages}
            calls = block()
            spent = sum(_difference(before[folder], _counted(folder), folder) for folder in self.packages)
            per_call.append(spent * 1e-6 / calls)
        low, high = median_interval(per_call)
        return Measurement(value=float(np.median(per_call)), lower=low, upper=high, unit="J", samples=BLOCKS)


def energy(
    artifact: Path,
    inputs: Sequence[Path],
    conditions: Conditions,
    *,
    log: Path,
    memory_bytes: int,
    time_s: float | None = None,
) -> Measurement:
    """Joules a call of the whole processor package while the artifact runs on leased cores.

    Raises: WorkerError if the process fails, or all takes longer than `time_s` from when the cores are free.
    """
    counters = EnergyCounters.find()
    if not counters.packages:
        return counters.measure(lambda: 1)
    with lease(conditions.threads) as cores:
        deadline = Deadline(time_s)
        with loaded(
            artifact, inputs, conditions, log=log, memory_bytes=memory_bytes, cores=cores, time_s=time_s
        ) as worker:
            first = float(np.median(worker.call("block", time_s=deadline.left(), calls=10)["seconds"]))
            calls = max(1, round(BLOCK_S / first))
            return counters.measure(lambda: len(worker.call("block", time_s=deadline.left(), calls=calls)["seconds"]))


def _readable(file: Path) -> bool:
    try:
        file.read_text()
    except OSError:
        return False
    return True


def _counted(folder: Path) -> int:
    return int((folder / "energy_uj").read_text())


def _difference(before: int, after: int, folder: Path) -> int:
    """Microjoules between two readings, of which the second may have wrapped around."""
    return after - before if after >= before else after - before + int((folder / "max_energy_range_uj").read_text())
