"""Latency and throughput under load: requests arrive at random, whether the model is ready for them or not.

Arrivals form a Poisson process (open loop), and the latency of a request runs from its scheduled arrival, so a stalled
server is not spared the requests that it kept waiting.

Reference: Schroeder, Wierman and Harchol-Balter 2006 (open and closed loops); Reddi et al. 2020, arXiv 1911.02549
(MLPerf Inference, the Server scenario).
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from temper.measure.loaded import LOAD_S
from temper.measure.worker import Worker

GRACE = 2.0
"""How many times as long as its arrivals took a window may last, before the rest counts as unanswered."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """How an artifact is served: instances side by side, threads of each, and most requests in one call.

    `length` is that of every request, where the model's is dynamic.
    """

    instances: int = 1
    threads: int = 1
    batch: int = 1
    length: int | None = None

    @property
    def cores(self) -> int:
        return self.instances * self.threads

    def __str__(self) -> str:
        return f"{self.instances} × {self.threads} thread{'s' * (self.threads > 1)}, batch up to {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Window:
    """One stretch of load: seconds from arrival to answer of every request (requests,), infinite if unanswered."""

    latencies: NDArray[np.float64]
    elapsed_s: float

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return float(np.isfinite(self.latencies).sum() / self.elapsed_s)

    def percentile(self, share: float) -> float:
        """The latency that this share (in percent) of the requests does not exceed, as one of theirs."""
        return float(np.percentile(self.latencies, share, method="higher"))


class Served:
    """A process that serves one artifact."""

    def __init__(self, worker: Worker, service: Service, scratch: Path) -> None:
        self.service = service
        self._worker, self._scratch = worker, scratch

    def offer(self, rate: float, duration_s: float, seed: int) -> Window:
        """Poisson arrivals at `rate` a second for so many seconds. Raises: WorkerError if the process fails."""
        generator = np.random.default_rng(seed)
        gaps = generator.exponential(1 / rate, size=max(1, round(rate * duration_s)))
        return self._window(np.cumsum(gaps), GRACE * duration_s)

    def saturate(self, duration_s: float, most: int) -> Window:
        """`most` requests that are all there from the start, for as long as the time allows: the capacity."""
        return self._window(np.zeros(most), duration_s)

    def _window(self, arrivals: NDArray[np.float64], limit_s: float) -> Window:
        asked, answered = self._scratch / "arrivals.npy", self._scratch / "completions.npy"
        np.save(asked, arrivals)
        self._worker.call(
            "answer",
            time_s=limit_s + LOAD_S,
            arrivals=str(asked),
            completions=str(answered),
            most=self.service.batch,
            limit_s=limit_s,
        )
        completions = np.load(answered)
        finite = completions[np.isfinite(completions)]
        return Window(latencies=completions - arrivals, elapsed_s=float(finite.max(initial=1e-9)))


@contextmanager
def served(
    artifact: Path, service: Service, *, cores: tuple[int, ...], log: Path, memory_bytes: int
) -> Iterator[Served]:
    """A process on these cores with every instance loaded and warm. Raises: WorkerError if it fails."""
    with (
        tempfile.TemporaryDirectory(prefix="temper-load-") as scratch,
        Worker(
            "temper.measure.server", log=log, memory_bytes=memory_bytes, cores=cores, threads=service.threads
        ) as worker,
    ):
        worker.call(
            "load",
            time_s=LOAD_S,
            folder=str(artifact),
            instances=service.instances,
            threads=service.threads,
            batch=service.batch,
            length=service.length,
        )
        yield Served(worker, service, Path(scratch))
