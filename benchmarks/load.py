"""Latency and throughput under load: temper's own generator against MLPerf's LoadGen on the same artifact.

    python benchmarks/load.py FOLDER [--rate R] [--seconds S] [--out benchmarks/load.md]

Both offer the same load to one instance of the artifact, batch 1, one thread, in turn and three times each. LoadGen
runs its scenarios Server (Poisson arrivals), SingleStream, MultiStream (eight samples at once, and the next eight when
the last one is answered) and Offline; temper a window of Poisson arrivals, its loop of calls, the same loop with eight
calls taken together and its window of saturation. Each window lasts `--seconds`, by default a minute, so that all of
it takes about half an hour, on a machine that should do nothing else. Needs the extra `bench`.
"""

import argparse
import os
import re
import sys
import tempfile
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from table import header, markdown
from temper.core.artifact import Artifact, example_inputs, located
from temper.core.goal import Conditions
from temper.hardware.cores import lease
from temper.measure.child import serve
from temper.measure.load import Served, Service, served
from temper.measure.loaded import loaded
from temper.measure.worker import Worker

MEMORY = 1 << 34
REPEATS = 3
SLACK = 10.0
"""How many times as long as its window a scenario may take."""
BUSY = 0.6
"""Without --rate, the share of the capacity that is offered."""
PROBED = 20_000
"""Requests at most that show the capacity."""
STREAMS = 8
"""Samples in a query of MultiStream."""
PERCENTILES = {"Server": (50, 90, 99), "SingleStream": (50, 90), "MultiStream": (50, 90, 99), "Offline": ()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as scratch:
        rate, ours, theirs = _measured(options.folder, options.rate, options.seconds, Path(scratch))
    rows = [_row(name, ours[name], theirs[name]) for name in ours]
    title = (
        f"LoadGen and temper on `{Artifact.open(options.folder).recipe['runtime']['name']}` at {rate:.0f} requests/s"
    )
    text = [header(title, f"python benchmarks/load.py FOLDER --rate {rate:.0f} --seconds {options.seconds:g}")]
    text.append(
        f"A query of MultiStream is {STREAMS} samples at once and answered when the last of them is; for temper, it "
        f"is the sum of {STREAMS} calls in a row. Percentiles are those of queries."
    )
    text.append(markdown(("figure", "LoadGen (three runs)", "temper (three runs)", "temper / LoadGen"), rows))
    options.out.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(options.out.read_text())


def _measured(folder: Path, rate: float, seconds: float, scratch: Path) -> tuple[float, dict, dict]:
    log = scratch / "log"
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    with lease(1) as cores:
        loadgen = Worker("load", log=log, memory_bytes=MEMORY, cores=cores, threads=1)
        calls = loaded(located(folder), (), Conditions(), log=log, memory_bytes=MEMORY, cores=cores)
        with loadgen, calls, served(folder, Service(), cores=cores, log=log, memory_bytes=MEMORY) as own:
            loadgen.call("load", time_s=120, folder=str(folder))
            capacity = own.saturate(2.0, PROBED).throughput
            rate = rate or BUSY * capacity
            for seed in range(REPEATS):
                place = scratch / str(seed)
                mine = _own(own, calls, rate, capacity, seconds, seed)
                other = loadgen.call(
                    "test",
                    time_s=SLACK * len(PERCENTILES) * seconds,
                    folder=str(place),
                    rate=rate,
                    capacity=capacity,
                    seconds=seconds,
                    seed=seed,
                )
                for name in mine:
                    ours.setdefault(name, []).append(mine[name])
                    theirs.setdefault(name, []).append(other[name])
    return rate, ours, theirs


def _own(own: Served, calls: Worker, rate: float, capacity: float, seconds: float, seed: int) -> dict[str, float]:
    """What temper measures in each scenario, in LoadGen's words."""
    window = own.offer(rate, seconds, seed)
    queries = int(seconds * capacity / STREAMS)
    single, several = (
        np.asarray(calls.call("block", time_s=SLACK * seconds, calls=STREAMS * queries)["seconds"]) for _ in range(2)
    )
    offline = own.saturate(seconds, int(seconds * capacity))
    # One instance answers the samples of a query in turn.
    streams = several.reshape(queries, STREAMS).sum(axis=1)
    latencies = {"Server": window.latencies, "SingleStream": single, "MultiStream": streams}
    found = {
        f"{scenario}, p{share} ms": float(np.percentile(latencies[scenario], share, method="higher")) * 1e3
        for scenario, shares in PERCENTILES.items()
        for share in shares
    }
    return {**found, "Offline, samples/s": offline.throughput}


def _row(name: str, ours: list[float], theirs: list[float]) -> tuple[str, ...]:
    listed = [", ".join(f"{value:.3f}" if value < 100 else f"{value:.0f}" for value in each) for each in (theirs, ours)]
    return (name, *listed, f"{np.median(ours) / np.median(theirs):.3f}")


class SystemUnderTest:
    """LoadGen's other side: one thread that answers queries in order."""

    def load(self, folder: str) -> None:
        artifact = Artifact.open(folder)
        self.model, self.inputs = artifact.load(1), example_inputs(artifact.schema, 1)
        for _ in range(20):
            self.model(*self.inputs)

    def test(self, folder: str, rate: float, capacity: float, seconds: float, seed: int) -> dict[str, float]:
        """What LoadGen's own summaries say of the scenarios."""
        found = {}
        for scenario, percentiles in PERCENTILES.items():
            place = Path(folder) / scenario
            place.mkdir(parents=True)
            summary = self._run(place, _settings(scenario, rate, capacity, seconds, seed))
            for share in percentiles:
                found[f"{scenario}, p{share} ms"] = _number(f"{share}.00 percentile latency (ns)", summary) / 1e6
            if not percentiles:
                found[f"{scenario}, samples/s"] = _number("Samples per second", summary)
        return found

    def _run(self, place: Path, settings: Any) -> str:
        import mlperf_loadgen as loadgen

        logs = loadgen.LogSettings()
        logs.log_output.outdir = str(place)
        queue: SimpleQueue[Any] = SimpleQueue()
        thread = threading.Thread(target=self._answer, args=(queue, loadgen))
        thread.start()
        system = loadgen.ConstructSUT(queue.put, lambda: None)
        library = loadgen.ConstructQSL(1, 1, lambda indices: None, lambda indices: None)
        try:
            loadgen.StartTestWithLogSettings(system, library, settings, logs)
        finally:
            queue.put(None)
            thread.join()
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(system)
        return (place / "mlperf_log_summary.txt").read_text()

    def _answer(self, queue: SimpleQueue, loadgen: Any) -> None:
        while (queries := queue.get()) is not None:
            for query in queries:
                self.model(*self.inputs)
                loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0)])


def _settings(scenario: str, rate: float, capacity: float, seconds: float, seed: int) -> Any:
    """LoadGen's settings: it prepares as many queries as an artifact of this capacity answers in the window."""
    import mlperf_loadgen as loadgen

    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = settings.max_duration_ms = int(seconds * 1e3)
    settings.min_query_count = 1
    settings.server_target_qps = rate
    settings.single_stream_expected_latency_ns = int(1e9 / capacity)
    settings.multi_stream_samples_per_query = STREAMS
    settings.multi_stream_expected_latency_ns = int(STREAMS * 1e9 / capacity)
    settings.offline_expected_qps = capacity
    settings.schedule_rng_seed = seed + 1
    return settings


def _number(line: str, summary: str) -> float:
    return float(re.search(re.escape(line) + r"\s*:\s*([\d.]+)", summary)[1])


if __name__ == "__main__" and not sys.stdin.isatty() and len(sys.argv) == 1:
    system = SystemUnderTest()
    serve({"load": system.load, "test": system.test})
elif __name__ == "__main__":
    main()
