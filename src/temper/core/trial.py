"""A trial: one recipe applied, exported, reloaded and measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from temper.core.goal import Goal
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe

Outcome = Literal["measured", "dropped", "failed", "interrupted", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was tried, what it cost and what came out.

    `measurements` holds, where they were taken: `score` and `drop` on the selection part, `latency_ratio` to the
    run's first trial, `latency_s`, `size_bytes`, `memory_bytes`. A trial that failed says why in `reason`; one that the
    process did not survive is `interrupted`, one that the budget cut off `unfinished`, and both may be tried again.
    """

    number: int
    recipe: Recipe
    outcome: Outcome
    reason: str = ""
    cost_s: float = 0.0
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    executed: Mapping[str, int] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        return self.outcome == "measured"

    @property
    def drop(self) -> Measurement:
        return self.measurements["drop"]

    def minimized(self, goal: Goal) -> Measurement:
        """The minimized quantity: the latency ratio to the run's first trial, or bytes."""
        return self.measurements[OBJECTIVES[goal.minimize]]

    def objective(self, goal: Goal) -> float:
        """The value of the minimized quantity."""
        return self.minimized(goal).value

    def within(self, goal: Goal) -> bool:
        """Whether the point estimates keep every limit of the goal; the proof decides with intervals."""
        limits = {"drop": goal.max_drop, **goal.limits}
        return self.measured and all(self.measurements[name].value <= limit for name, limit in limits.items())

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "recipe": self.recipe.to_json(),
            "outcome": self.outcome,
            "reason": self.reason,
            "cost_s": self.cost_s,
            "measurements": {name: each.to_json() for name, each in self.measurements.items()},
            "executed": dict(self.executed),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        measurements = {name: Measurement.from_json(each) for name, each in fields["measurements"].items()}
        return cls(**{**fields, "recipe": Recipe.from_json(fields["recipe"]), "measurements": measurements})


OBJECTIVES = {"latency": "latency_ratio", "size": "size_bytes", "memory": "memory_bytes"}
"""The measurement that stands for each objective of a goal."""
