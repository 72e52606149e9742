import json
import math

import pytest

from temper.core.errors import UsageError
from temper.core.goal import Conditions, Goal


def test_json_form() -> None:
    goal = Goal(minimize="size", max_drop=0.02, limits={"latency_s": 0.01}, conditions=Conditions(batch=4, threads=2))
    assert Goal.from_json(json.loads(json.dumps(goal.to_json()))) == goal


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"minimize": "regret"}, "is not one of latency, size, memory"),
        ({"max_drop": 0.0}, "must be positive"),
        ({"max_drop": -1.0}, "must be positive"),
        ({"max_drop": math.nan}, "must be positive"),
        ({"limits": {"latency_ms": 1.0}}, "no limit is called latency_ms; there are: latency_s"),
    ],
)
def test_goals_that_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Goal(**fields)


def test_conditions() -> None:
    assert str(Conditions(batch=8, threads=2)) == "batch 8, 2 threads"
    with pytest.raises(UsageError, match="threads=0 must be at least 1"):
        Conditions(threads=0)
