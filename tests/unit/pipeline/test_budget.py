import time

import pytest

from temper.core.errors import UsageError
from temper.pipeline.budget import Budget, budgeted


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45), (45, 45), (0.5, 0.5), (" 2 m ", 120)],
)
def test_lengths_of_time(written: str | float, seconds: float) -> None:
    assert budgeted(written, None, 0.0).seconds == seconds


@pytest.mark.parametrize("written", ["", "soon", "-5m", "0", "0s", "10 days", "1m30s", "1e400", "nan", "inf"])
def test_what_is_no_length_of_time(written: str) -> None:
    with pytest.raises(UsageError, match="is not a length of time"):
        budgeted(written, None, 0.0)


def test_trials_replace_time() -> None:
    budget = budgeted("soon", 3, 1e9)
    assert [budget.allows(ended) for ended in (0, 2, 3)] == [True, True, False]
    assert budget.left_s() == float("inf")
    assert budget.trial_s(trains=True) > 100 * budget.trial_s()
    with pytest.raises(UsageError, match="trials=0 must be at least 1"):
        budgeted("10m", 0, 0.0)


def test_time_that_was_spent_counts_on_resuming() -> None:
    assert budgeted("100s", None, 50.0).left_s() == pytest.approx(35, abs=1)
    assert not budgeted("100s", None, 90.0).allows(0)


def test_one_trial_cannot_eat_a_large_budget() -> None:
    now = time.monotonic()
    assert Budget(seconds=1000, trials=None, began=now).trial_s() == pytest.approx(500)
    assert Budget(seconds=80, trials=None, began=now).trial_s() == pytest.approx(60)
    assert Budget(seconds=1000, trials=None, began=now - 840).trial_s() == pytest.approx(10, abs=1)
