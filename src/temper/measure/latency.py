"""Latency: contestants in resident processes on the same cores, timed in alternating blocks."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper.core.goal import Conditions
from temper.core.measurement import Measurement
from temper.hardware.cores import lease
from temper.measure.loaded import Deadline, loaded
from temper.measure.statistics import latency_ratio, median_interval
from temper.measure.worker import Worker

WARM_UP_BLOCKS = 30
STEADY = 0.05
"""A contestant is warm when two blocks in a row differ by less than this share."""
SPINNING_S = 0.1
"""Seconds of calls that are thrown away first with several threads.

After a block of ONNX Runtime's, the first calls of another process took up to twice their time, for 50 to 100 ms: its
threads seem to wait for the next call by spinning, on a core that this process is to use.
"""
UNDISTURBED = 0.9
"""Least share of a block that the processor must have worked for us, with one thread."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One contestant: the typical seconds a call of each block (rounds,), and every single call (calls,).

    A block's figure is the median of its calls; where lengths differ, the mean over the lengths of each one's median.
    """

    blocks: NDArray[np.float64]
    calls: NDArray[np.float64]
    disturbed: int

    def latency(self) -> Measurement:
        """Seconds a call: p50 is the median over the blocks' figures, with a bootstrap interval over the blocks.

        Calls within a block resemble each other, so blocks are resampled. p90 and p99 are those of single calls.
        """
        p50, (low, high) = float(np.median(self.blocks)), median_interval(self.blocks)
        p90, p99 = np.percentile(self.calls, [90, 99])
        details = {"p50": p50, "p90": float(p90), "p99": float(p99), "disturbed_rounds": self.disturbed}
        return Measurement(value=p50, lower=low, upper=high, unit="s", samples=len(self.calls), details=details)

    def ratio_to(self, other: "Timing", noise_floor: float = 0.0) -> Measurement:
        """This contestant's latency over the other's, with a bootstrap interval over the rounds that both were in."""
        ratio = latency_ratio(other.blocks, self.blocks)
        return Measurement(
            value=ratio.ratio,
            lower=ratio.lower,
            upper=ratio.upper,
            unit="1",
            samples=ratio.pairs,
            details={"noise_floor": noise_floor},
        )


def interleaved(
    artifacts: Sequence[Path],
    inputs: Sequence[Path],
    conditions: Conditions,
    *,
    rounds: int,
    block_s: float,
    log: Path,
    memory_bytes: int,
    time_s: float | None = None,
) -> list[Timing]:
    """Time the artifacts against each other, in the order given; the same folder may stand in the list twice.

    Every contestant has a process of its own, all of them on the same leased cores; in each round every one runs a
    block of at least `block_s` seconds while the others wait, in a random order that turns around in the next round.
    Rounds in which the processor was taken away (seen by its own time against the clock's) are repeated, at most as
    often again as there are rounds. Raises: WorkerError if a process fails, or all takes longer than `time_s` from
    when the cores are free.
    """
    with lease(conditions.threads) as cores, ExitStack() as stack:
        deadline = Deadline(time_s)
        workers = []
        for each in artifacts:
            left = None if time_s is None else deadline.left()
            worker = loaded(each, inputs, conditions, log=log, memory_bytes=memory_bytes, cores=cores, time_s=left)
            workers.append(stack.enter_context(worker))
        one_thread = conditions.threads == 1
        return alternated(workers, rounds=rounds, block_s=block_s, one_thread=one_thread, deadline=deadline)


def alternated(
    workers: Sequence[Worker], *, rounds: int, block_s: float, one_thread: bool, deadline: Deadline | None = None
) -> list[Timing]:
    """Warm up the workers, which answer `block(calls)`, then time them in turn."""
    deadline = deadline or Deadline()
    plans = [_warm_up(worker, block_s, one_thread, deadline) for worker in workers]
    return _rounds(workers, plans, rounds=rounds, one_thread=one_thread, deadline=deadline)


def _warm_up(worker: Worker, block_s: float, one_thread: bool, deadline: Deadline) -> tuple[int, int]:
    """Run blocks until two in a row agree; how many calls make a block of `block_s` seconds, and how many before it.

    The first calls after a pause find cold caches and, with several threads, cores that others still hold.
    """
    first = typical(worker.call("block", time_s=deadline.left(), calls=2))
    calls = int(np.clip(block_s / first, 1, 2000))
    before = np.inf
    for _ in range(WARM_UP_BLOCKS):
        now = typical(worker.call("block", time_s=deadline.left(), calls=calls))
        if abs(now - before) < STEADY * before:
            break
        before = now
    calls = int(np.clip(np.ceil(block_s / now), 1, 2000))
    settle = int(np.ceil(SPINNING_S / now)) if not one_thread else 0 if calls == 1 else max(1, calls // 8)
    return calls, settle


def typical(block: Mapping[str, Any]) -> float:
    """Seconds a call: the median; where batches of different lengths take turns, the mean of each one's median."""
    seconds = np.asarray(block["seconds"]).reshape(-1, block["cycle"])
    return float(np.median(seconds, axis=0).mean())


def _rounds(
    workers: Sequence[Worker], plans: Sequence[tuple[int, int]], *, rounds: int, one_thread: bool, deadline: Deadline
) -> list[Timing]:
    figures: list[list[float]] = [[] for _ in workers]
    singles: list[list[float]] = [[] for _ in workers]
    disturbed = 0
    kept = 0
    rng, order = np.random.default_rng(0), list(range(len(workers)))
    while kept < rounds:
        # Whoever ran before leaves caches and clocks behind, so that everyone follows everyone else.
        order = rng.permutation(len(workers)).tolist() if (kept + disturbed) % 2 == 0 else order[::-1]
        blocks = {}
        for index in order:
            calls, settle = plans[index]
            blocks[index] = workers[index].call("block", time_s=deadline.left(), calls=calls, settle=settle)
        shares = [block["processor_share"] for block in blocks.values()]
        if one_thread and disturbed < rounds and min(shares) < UNDISTURBED:
            disturbed += 1
            continue
        kept += 1
        for index, block in blocks.items():
            figures[index].append(typical(block))
            singles[index].extend(block["seconds"])
    return [
        Timing(blocks=np.asarray(each), calls=np.asarray(single), disturbed=disturbed)
        for each, single in zip(figures, singles)
    ]
