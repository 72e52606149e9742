"""The alternating rounds, with contestants whose clock is a list of numbers."""

from collections.abc import Callable

import numpy as np
import pytest

from temper.core.errors import WorkerError
from temper.measure.latency import Timing, alternated, typical
from temper.measure.loaded import Deadline


class Contestant:
    """Answers `block` as a worker does; every call takes as long as `takes` says for the block's number."""

    def __init__(self, name: str, takes: Callable[[int], float], order: list[str], share: float = 1.0) -> None:
        self.name, self.takes, self.order, self.share = name, takes, order, share
        self.blocks = 0

    def call(self, command: str, *, time_s: float, calls: int, settle: int = 0) -> dict:
        assert command == "block"
        self.order.append(self.name)
        self.blocks += 1
        return {"seconds": [self.takes(self.blocks)] * calls, "cycle": 1, "processor_share": self.share}


def timings(*takes: Callable[[int], float], rounds: int = 20, share: float = 1.0) -> tuple[list[Timing], list[str]]:
    order: list[str] = []
    contestants = [Contestant(str(index), each, order, share) for index, each in enumerate(takes)]
    return alternated(contestants, rounds=rounds, block_s=0.01, one_thread=True), order


def test_lengths_that_take_turns_count_equally() -> None:
    """The median of all calls would be that of one length, and jump when another one gets the majority."""
    quick_and_slow = {"seconds": [1.0, 5.0, 1.2, 5.0, 1.0, 90.0], "cycle": 2}
    assert typical(quick_and_slow) == 0.5 * (1.0 + 5.0)
    assert typical({**quick_and_slow, "cycle": 1}) == 0.5 * (1.2 + 5.0)


def test_who_is_twice_as_slow_has_the_ratio_two() -> None:
    noise = np.random.default_rng(0).normal(1, 0.02, 500)
    (first, second), _ = timings(lambda n: 1e-3 * noise[n], lambda n: 2e-3 * noise[-n])
    ratio = second.ratio_to(first)
    assert ratio.lower < 2 < ratio.upper
    assert ratio.upper - ratio.lower < 0.1
    assert ratio.samples == 20
    latency = first.latency()
    assert latency.value == pytest.approx(1e-3, rel=0.05)
    assert latency.details["p50"] <= latency.details["p90"] <= latency.details["p99"]
    assert latency.unit == "s"


def test_a_drift_of_the_machine_cancels_out() -> None:
    """Both become three times slower in the course of the rounds; compared round by round they stay equal."""
    (first, second), _ = timings(lambda n: 1e-3 * (1 + n / 10), lambda n: 1e-3 * (1 + n / 10))
    ratio = second.ratio_to(first)
    assert ratio.value == pytest.approx(1, abs=1e-6)


def test_everyone_follows_everyone_and_the_order_turns_around() -> None:
    _, order = timings(lambda n: 1e-3, lambda n: 1e-3, lambda n: 1e-3, rounds=40)
    rounds = ["".join(order[start : start + 3]) for start in range(len(order) - 120, len(order), 3)]
    assert all(sorted(each) == ["0", "1", "2"] for each in rounds)
    assert all(there == back[::-1] for there, back in zip(rounds[::2], rounds[1::2]))
    assert len(set(rounds)) == 6


def test_several_threads_settle_until_those_of_others_have_stopped_spinning() -> None:
    asked: list[tuple[int, int]] = []

    class Noting(Contestant):
        def call(self, command: str, *, time_s: float, calls: int, settle: int = 0) -> dict:
            asked.append((calls, settle))
            return super().call(command, time_s=time_s, calls=calls, settle=settle)

    contestant = Noting("0", lambda n: 2e-3, [])
    alternated([contestant], rounds=1, block_s=0.01, one_thread=False)
    assert asked[-1] == (5, 50)
    alternated([contestant], rounds=1, block_s=0.01, one_thread=True)
    assert asked[-1] == (5, 1)


def test_rounds_that_were_disturbed_are_repeated_but_not_forever() -> None:
    (timing, _), _ = timings(lambda n: 1e-3, lambda n: 1e-3, rounds=10, share=0.5)
    assert timing.disturbed == 10
    assert len(timing.blocks) == 10


def test_one_call_that_is_longer_than_a_block() -> None:
    (timing,), _ = timings(lambda n: 0.5, rounds=5)
    assert len(timing.calls) == 5


def test_the_interval_of_p50_is_that_of_the_median() -> None:
    """More rounds narrow it, which they do not where it is merely the spread of the blocks."""
    blocks = np.random.default_rng(0).normal(1e-3, 1e-4, 4000)
    few, many = (
        Timing(blocks=blocks[:count], calls=np.repeat(blocks[:count], 2), disturbed=0).latency() for count in (40, 4000)
    )
    assert few.lower <= few.value <= few.upper
    assert few.value == few.details["p50"]
    assert many.upper - many.lower < 0.2 * (few.upper - few.lower)


def test_rounds_end_at_the_deadline() -> None:
    contestant = Contestant("slow", lambda n: 1e-3, [])
    with pytest.raises(WorkerError, match="did not end within its limit of 0 s"):
        alternated([contestant], rounds=5, block_s=0.01, one_thread=True, deadline=Deadline(1e-9))
