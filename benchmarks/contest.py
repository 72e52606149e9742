"""Contestants of any kind in resident processes, timed in alternating blocks by temper's own measurement.

Run as a program it is the child's side: it builds or loads one contestant and answers `predict` and `block`.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import peers
from peers.subject import Subject
from temper.core.errors import TemperError
from temper.core.schema import Array
from temper.hardware.cores import lease
from temper.measure.child import serve
from temper.measure.latency import Timing, alternated
from temper.measure.worker import Worker

BUILD_S, LOAD_S, PREDICT_S = 1800.0, 900.0, 3600.0
BLOCK_S = 0.025
MEMORY_BYTES = 1 << 34
PROCESSES = 5
"""How often every contestant is loaded anew: the same artifact differs by up to 6 % from process to process, for as
long as the process lives, by where its memory lies."""
FIXED, VARIED = 8, 16
"""How many examples the timed calls go round; more where lengths differ, so that they stand for the mixture."""


class Contestant:
    """A peer or an artifact of temper, called with the arrays of one example at a time."""

    def build(self, subject: str, folder: str, peer: str) -> None:
        os.chdir(folder)  # libraries leave files where they run
        peers.named(peer).build(Subject(Path(subject)), Path(folder))

    def load(self, subject: str, folder: str, peer: str, threads: int) -> None:
        self.subject = Subject(Path(subject))
        if peer:
            self.call = peers.named(peer).load(self.subject, Path(folder), threads)
        else:
            self.call = _artifact(folder, threads)
        self.timed = self.subject.examples("proof").spread(VARIED if self.subject.varied else FIXED)

    def predict(self, outputs: str) -> int:
        """Answer all proof examples one by one, as they are timed; one file an output. How many outputs there are."""
        answers = [self.call(*example) for example in self.subject.examples("proof")]
        for index, parts in enumerate(zip(*answers)):
            np.save(f"{outputs}_{index}.npy", _stacked(parts))
        return len(answers[0])

    def block(self, calls: int, settle: int = 0) -> dict[str, Any]:
        """Time at least that many calls, in whole rounds over lengths, after `settle` others that are thrown away."""
        cycle = len(self.timed) if self.subject.varied else 1
        count = settle + -(-calls // cycle) * cycle
        seconds = np.empty(count)
        call, examples, clock = self.call, self.timed, time.perf_counter
        processor, began = time.process_time(), clock()
        for index in range(count):
            example = examples[index % len(examples)]
            before = clock()
            call(*example)
            seconds[index] = clock() - before
        share = (time.process_time() - processor) / (clock() - began)
        return {"seconds": seconds[settle:].tolist(), "cycle": cycle, "processor_share": share}


class Refused(Exception):
    """A contestant that cannot be built, loaded or asked, and why."""


def built(subject: Subject, peer: peers.Peer, folder: Path, log: Path) -> None:
    """Build the peer into the folder, in a process of its own. Raises: Refused."""
    with _worker(log) as worker:
        _asked(worker, "build", BUILD_S, subject=str(subject.folder), folder=str(folder), peer=peer.name)


def predicted(subject: Subject, peer: str, folder: Path, outputs: Path, log: Path) -> int:
    """Write what the contestant answers to all proof examples, at one thread; how many outputs. Raises: Refused."""
    with _worker(log, threads=1) as worker:
        _asked(worker, "load", LOAD_S, subject=str(subject.folder), folder=str(folder), peer=peer, threads=1)
        return int(_asked(worker, "predict", PREDICT_S, outputs=str(outputs)))


def timed(
    subject: Subject, contestants: Mapping[str, tuple[str, Path]], *, threads: int, rounds: int, log: Path
) -> tuple[dict[str, list[Timing]], dict[str, str]]:
    """Timings of all contestants, (peer or "", folder) by name, one a process; and those that failed, and why.

    The rounds are shared out among `PROCESSES` generations of processes, each with one process a contestant, which load
    in random order: who loads first finds another memory than who comes later.
    """
    timings: dict[str, list[Timing]] = {}
    failures: dict[str, str] = {}
    rng, names = np.random.default_rng(0), list(contestants)
    for _ in range(PROCESSES):
        left = {name: contestants[name] for name in rng.permutation(names).tolist() if name not in failures}
        found, failed = _generation(subject, left, threads=threads, rounds=-(-rounds // PROCESSES), log=log)
        failures |= failed
        for name, timing in found.items():
            timings.setdefault(name, []).append(timing)
    return {name: each for name, each in timings.items() if name not in failures}, failures


def ratio(of: Sequence[Timing], to: Sequence[Timing]) -> tuple[float, float, float]:
    """Time of the one over that of the other, and its 95 % interval: the geometric mean over the generations.

    Within a generation the ratio is the median over its rounds. Rounds of the same processes resemble each other, so
    the interval is Student's, of the generations' logarithms.
    """
    logs = np.array([np.median(np.log(one.blocks / other.blocks)) for one, other in zip(of, to)])
    reach = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
    return tuple(float(np.exp(each)) for each in (logs.mean(), logs.mean() - reach, logs.mean() + reach))


def _generation(
    subject: Subject, contestants: Mapping[str, tuple[str, Path]], *, threads: int, rounds: int, log: Path
) -> tuple[dict[str, Timing], dict[str, str]]:
    failures: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    with lease(threads) as cores, ExitStack() as stack:
        for name, (peer, folder) in contestants.items():
            worker = stack.enter_context(_worker(log, cores, threads))
            place = {"subject": str(subject.folder), "folder": str(folder)}
            try:
                _asked(worker, "load", LOAD_S, **place, peer=peer, threads=threads)
                _asked(worker, "block", LOAD_S, calls=2)
                workers[name] = worker
            except Refused as error:
                failures[name] = str(error)
        timings = alternated(list(workers.values()), rounds=rounds, block_s=BLOCK_S, one_thread=threads == 1)
    return dict(zip(workers, timings)), failures


def _worker(log: Path, cores: tuple[int, ...] = (), threads: int = 0) -> Worker:
    return Worker("contest", log=log, memory_bytes=MEMORY_BYTES, cores=cores, threads=threads)


def _asked(worker: Worker, command: str, time_s: float, **arguments: Any) -> Any:
    try:
        return worker.call(command, time_s=time_s, **arguments)
    except TemperError as error:
        raise Refused(" ".join(str(error).split())[:300]) from error


def _artifact(folder: str, threads: int) -> peers.Call:
    import temper

    model = temper.load(folder, threads)

    def call(*arrays: Array) -> tuple[Array, ...]:
        outputs = model(*arrays)
        if isinstance(outputs, dict):
            return tuple(outputs.values())
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return call


def _stacked(parts: Sequence[Array]) -> Array:
    """The outputs of single examples, (1, ...) each, as one array; shorter ones are filled up with zeros."""
    largest = tuple(map(max, zip(*(part.shape[1:] for part in parts))))
    whole = np.zeros((len(parts), *largest), parts[0].dtype)
    for index, part in enumerate(parts):
        inside: Any = (index, *map(slice, part.shape[1:]))
        whole[inside] = part[0]
    return whole


if __name__ == "__main__":
    contestant = Contestant()
    serve({name: getattr(contestant, name) for name in ("build", "load", "predict", "block")})
