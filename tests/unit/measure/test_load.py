"""Load on a model of known speed: what waits is counted, nothing is answered early, and everything in order."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from temper.measure.load import Service, Window
from temper.measure.server import Server, _Queue

STALL_S, EVERY_S = 0.2, 0.01


def answered(tmp_path: Path, model, arrivals: list[float], *, most: int = 1, instances: int = 1) -> np.ndarray:
    server = Server()
    server.models = [model] * instances
    server.inputs = {count: (np.zeros((count, 1)),) for count in range(1, most + 1)}
    np.save(tmp_path / "arrivals.npy", np.asarray(arrivals))
    server.answer(str(tmp_path / "arrivals.npy"), str(tmp_path / "completions.npy"), most, 5.0)
    return np.load(tmp_path / "completions.npy")


def test_whoever_waits_behind_a_stall_is_counted_from_its_arrival(tmp_path: Path) -> None:
    calls = []

    def stalls_once(x: np.ndarray) -> None:
        calls.append(len(x))
        if len(calls) == 1:
            time.sleep(STALL_S)

    arrivals = np.arange(10) * EVERY_S
    latencies = answered(tmp_path, stalls_once, list(arrivals)) - arrivals
    # A loop that sent the next request after the last answer would see one slow request and nine quick ones.
    assert (latencies > STALL_S - 10 * EVERY_S).all()
    assert calls == [1] * 10


def test_nothing_is_answered_before_it_arrives(tmp_path: Path) -> None:
    arrivals = [0.0, 0.05, 0.1]
    completions = answered(tmp_path, lambda x: None, arrivals, instances=2)
    assert (completions >= np.asarray(arrivals)).all()
    assert completions[-1] < 0.5


def test_those_that_wait_are_answered_together_up_to_the_batch(tmp_path: Path) -> None:
    sizes = []

    def slow(x: np.ndarray) -> None:
        sizes.append(len(x))
        time.sleep(0.02)

    completions = answered(tmp_path, slow, [0.0] * 7, most=4)
    assert sizes == [4, 3]
    assert completions[0] == completions[3] < completions[4]


def test_what_is_not_answered_in_time_counts_as_infinitely_late() -> None:
    queue = _Queue(np.zeros(4), 1, limit_s=-1.0)
    assert queue.take() is None
    window = Window(latencies=queue.completions - queue.arrivals, elapsed_s=1.0)
    assert window.throughput == 0
    assert window.percentile(50) == np.inf


def test_a_failing_model_ends_the_window_with_its_error(tmp_path: Path) -> None:
    def broken(x: np.ndarray) -> None:
        raise RuntimeError("no such kernel")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no such kernel"):
        answered(tmp_path, broken, [0.0] * 3, instances=2)
    assert threading.active_count() == before


def test_percentiles_are_latencies_that_occurred() -> None:
    window = Window(latencies=np.arange(1.0, 101.0), elapsed_s=50.0)
    assert window.percentile(99) == 100.0
    assert window.percentile(50) == 51.0
    assert window.throughput == 2.0
    assert Service(instances=2, threads=2).cores == 4
