"""The search for the highest rate within a limit on p99, on queues whose behaviour is simulated."""

import numpy as np
import pytest

from temper.core.errors import UsageError
from temper.measure.load import Service, Window
from temper.pipeline.load import IDLE, Loaded, _highest, best_services, divisions, load

SERVICE_S = 0.001


class Simulated:
    """One server that takes exactly a millisecond for each request (an M/D/1 queue)."""

    service = Service()

    def offer(self, rate: float, duration_s: float, seed: int) -> Window:
        generator = np.random.default_rng(seed)
        arrivals = np.cumsum(generator.exponential(1 / rate, size=max(1, round(rate * duration_s))))
        free, completions = 0.0, []
        for arrival in arrivals:
            free = max(free, arrival) + SERVICE_S
            completions.append(free)
        return Window(latencies=np.asarray(completions) - arrivals, elapsed_s=completions[-1])

    def saturate(self, duration_s: float, most: int) -> Window:
        count = round(duration_s / SERVICE_S)
        return Window(latencies=np.arange(1, count + 1) * SERVICE_S, elapsed_s=count * SERVICE_S)


def test_the_highest_rate_keeps_the_limit_and_a_higher_one_does_not() -> None:
    limit = 5e-3
    rate, windows = _highest(Simulated(), limit, 20.0, seed=0)
    assert all(window.percentile(99) <= limit for window in windows)
    assert Simulated().offer(1.15 * rate, 100.0, seed=9).percentile(99) > limit
    # The tail of an M/D/1 queue decays as exp(-a t) with load * (exp(a) - 1) = a, in service times: at a load of 0.56,
    # one request in a hundred takes five of them.
    assert 0.48 < rate * SERVICE_S < 0.6


def test_a_limit_below_the_service_time_is_kept_at_no_rate() -> None:
    rate, windows = _highest(Simulated(), SERVICE_S / 2, 1.0, seed=0)
    assert rate == pytest.approx(IDLE / SERVICE_S)
    assert not Loaded(title="", service=Service(), rate=rate, windows=windows).keeps(SERVICE_S / 2)


def test_cores_are_divided_in_every_way() -> None:
    assert list(divisions(1)) == [(1, 1)]
    assert list(divisions(2)) == [(1, 1), (2, 1), (1, 2)]
    assert list(divisions(4)) == [(1, 1), (4, 1), (1, 2), (2, 2), (1, 4)]


def test_a_load_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="must be positive"):
        load(["run"], Service(), rate=0, duration_s=1, tell=print)
    with pytest.raises(UsageError, match="must be positive"):
        best_services("run", p99_s=-1, duration_s=1, tell=print)
