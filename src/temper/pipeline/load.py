"""How artifacts behave under load, and how to serve one for the most throughput within a limit on p99."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from temper.core.artifact import Artifact
from temper.core.errors import UsageError
from temper.core.recipe import Recipe
from temper.hardware import cores
from temper.measure.load import Served, Service, Window, served
from temper.pipeline.bench import check_length
from temper.pipeline.workshop import MEMORY_SHARE

WINDOWS = 3
BATCHES = (1, 2, 4, 8, 16)
HALVINGS = 5
"""How often the interval of rates is halved: it ends within 3 % of the capacity."""
FEWEST = 300
"""Requests a window must hold for its p99 to be more than its maximum."""
MOST = 1_000_000
IDLE = 0.01
"""The lowest share of the capacity that is tried: whoever misses the limit there misses it when almost idle."""
WORTHWHILE = 1.02
"""A larger batch must raise the rate by so much for a yet larger one to be tried."""
SAFETY = 0.9
"""A rate that does not hold in fresh windows is lowered by this factor and tried again."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One artifact at one rate: several windows of Poisson arrivals."""

    title: str
    service: Service
    rate: float
    windows: tuple[Window, ...]

    @property
    def throughput(self) -> float:
        """Answers a second, over all windows."""
        return float(np.mean([each.throughput for each in self.windows]))

    @property
    def unanswered(self) -> float:
        """The share of requests that got no answer in time: the rate is more than the service can do."""
        return float(np.mean(np.concatenate([np.isinf(each.latencies) for each in self.windows])))

    def percentile(self, share: float) -> tuple[float, float, float]:
        """Seconds over all windows, and of the best and the worst window."""
        everyone = Window(latencies=np.concatenate([each.latencies for each in self.windows]), elapsed_s=1.0)
        single = [each.percentile(share) for each in self.windows]
        return everyone.percentile(share), min(single), max(single)

    def keeps(self, p99_s: float) -> bool:
        """Whether the p99 of every window is within the limit."""
        return self.percentile(99)[2] <= p99_s


def load(
    artifacts: Sequence[str],
    service: Service,
    *,
    rate: float,
    duration_s: float,
    seed: int = 0,
    trust: bool = False,
    tell: Tell,
) -> list[Loaded]:
    """Offer the same arrivals to every artifact, one after the other, in several windows that alternate.

    Raises: UsageError for a rate that is not positive, or more cores than there are; ArtifactError; WorkerError.
    """
    if rate <= 0 or duration_s <= 0:
        raise UsageError(f"a rate of {rate:g} a second for {duration_s:g} s is no load: both must be positive")
    opened = _opened(artifacts, service.length, trust)
    with cores.lease(service.cores) as leased, ExitStack() as stack:
        log = _log(stack)
        every = []
        for title, artifact in opened.items():
            tell(f"loading {title}: {service}")
            _check_batch(artifact, service)
            every.append(stack.enter_context(_served(artifact, service, leased, log)))
        windows: list[list[Window]] = [[] for _ in every]
        for number in range(WINDOWS):
            tell(f"window {number + 1} of {WINDOWS}: {rate:g} requests a second for {duration_s:g} s")
            for each, own in zip(every, windows):
                own.append(each.offer(rate, duration_s, seed + number))
    return [Loaded(title=title, service=service, rate=rate, windows=tuple(own)) for title, own in zip(opened, windows)]


def best_services(
    artifact: str,
    *,
    p99_s: float,
    duration_s: float,
    length: int | None = None,
    seed: int = 0,
    trust: bool = False,
    tell: Tell,
) -> list[Loaded]:
    """For every way to serve the artifact on this machine's cores, the highest rate whose p99 keeps the limit.

    The best first. Each held its rate in fresh windows, the worst of which has its p99 under the limit; those that keep
    it at no rate come last, with the lowest rate that was tried.

    Raises: UsageError for a limit that is not positive; ArtifactError; WorkerError.
    """
    if p99_s <= 0 or duration_s <= 0:
        raise UsageError(f"a p99 of {p99_s:g} s in windows of {duration_s:g} s cannot be: both must be positive")
    (title, opened), *_ = _opened([artifact], length, trust).items()
    found: list[Loaded] = []
    for instances, threads in divisions(len(cores.available())):
        best = 0.0
        for batch in BATCHES if opened.schema.batch is None else (opened.schema.batch,):
            service = Service(instances=instances, threads=threads, batch=batch, length=length)
            with cores.lease(service.cores) as leased, ExitStack() as stack:
                each = stack.enter_context(_served(opened, service, leased, _log(stack)))
                rate, windows = _highest(each, p99_s, duration_s, seed)
            found.append(Loaded(title=title, service=service, rate=rate, windows=windows))
            if not found[-1].keeps(p99_s):
                tell(f"{service}: p99 is over {p99_s * 1e3:g} ms even at {rate:.1f} requests a second")
                break
            tell(f"{service}: {rate:.1f} requests a second within {p99_s * 1e3:g} ms")
            if rate < best * WORTHWHILE:
                break
            best = max(best, rate)
    return sorted(found, key=lambda each: (not each.keeps(p99_s), -each.rate))


def divisions(count: int) -> Iterator[tuple[int, int]]:
    """Instances and threads of each: every power of two of threads, on one instance and on as many as find cores."""
    threads = 1
    while threads <= count:
        for instances in sorted({1, count // threads}):
            yield instances, threads
        threads *= 2


def _highest(each: Served, p99_s: float, duration_s: float, seed: int) -> tuple[float, tuple[Window, ...]]:
    """The highest rate that keeps p99 under the limit, by halving, and the fresh windows in which it held.

    Where none does, a rate of which the service can do a hundred times as much, and its windows.
    """
    capacity = each.saturate(duration_s, MOST).throughput
    low, high = capacity * IDLE, capacity
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        window = each.offer(middle, _long_enough(middle, duration_s), seed)
        low, high = (middle, high) if window.percentile(99) <= p99_s else (low, middle)
    rate = low
    while True:
        seconds = _long_enough(rate, duration_s)
        windows = tuple(each.offer(rate, seconds, seed + 1 + number) for number in range(WINDOWS))
        if rate <= capacity * IDLE or all(window.percentile(99) <= p99_s for window in windows):
            return rate, windows
        rate = max(rate * SAFETY, capacity * IDLE)


def _long_enough(rate: float, duration_s: float) -> float:
    return max(duration_s, FEWEST / rate)


def _opened(artifacts: Sequence[str], length: int | None, trust: bool) -> dict[str, Artifact]:
    opened = [(name, Artifact.open(name)) for name in artifacts]
    for name, artifact in opened:
        artifact.check_trust(trust)
        check_length(name, artifact.schema, length)
    return {f"{name}: {Recipe.from_json(artifact.recipe)}": artifact for name, artifact in opened}


def _check_batch(artifact: Artifact, service: Service) -> None:
    fixed = artifact.schema.batch
    if fixed is not None and service.batch > fixed:
        raise UsageError(
            f"{artifact.folder} takes a batch of {fixed} only, and up to {service.batch} requests were to be answered "
            f"in one call: ask for --batch {fixed} or fewer"
        )


def _served(artifact: Artifact, service: Service, leased: tuple[int, ...], log: Path) -> AbstractContextManager[Served]:
    memory = int(MEMORY_SHARE * psutil.virtual_memory().available)
    return served(artifact.folder, service, cores=leased, log=log, memory_bytes=memory)


def _log(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="temper-load-"))) / "log"
