"""The proof: what was measured on data that the search never saw, and a verdict for every limit."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from temper.core.goal import Goal
from temper.core.measurement import Measurement


class Verdict(StrEnum):
    """ACCEPT: the limit is proven. REJECT: the opposite is proven. INCONCLUSIVE: neither, with these examples."""

    ACCEPT = "ACCEPT"
    REJECT = "REJECT"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One limit and the verdict on it: the measurement must lie under `bound`, interval and all."""

    limit: str
    bound: float
    measurement: Measurement
    verdict: Verdict
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {
            "limit": self.limit,
            "bound": self.bound,
            "measurement": self.measurement.to_json(),
            "verdict": self.verdict.value,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        measurement = Measurement.from_json(fields["measurement"])
        return cls(**{**fields, "measurement": measurement, "verdict": Verdict(fields["verdict"])})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant as measured for the proof: its recipe and measurements by name."""

    role: str
    recipe: Mapping[str, Any]
    title: str
    measurements: Mapping[str, Measurement]

    def to_json(self) -> dict[str, Any]:
        measurements = {name: each.to_json() for name, each in self.measurements.items()}
        return {"role": self.role, "recipe": dict(self.recipe), "title": self.title, "measurements": measurements}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        measurements = {name: Measurement.from_json(each) for name, each in fields["measurements"].items()}
        return cls(**{**fields, "measurements": measurements})


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The measurements of eager PyTorch, the baseline and the chosen artifact, and a judgement of each limit.

    `fingerprint` tells the task's own model and data from any other. `steps` are the candidates in the order in which
    the proof was opened, with their verdicts. `predictions` is the sha256 of the chosen artifact's outputs on the
    `examples` of the proof part.
    """

    task: str
    metric: str
    goal: Goal
    seed: int
    fingerprint: Mapping[str, str]
    examples: int
    rows: tuple[Row, ...]
    judgements: tuple[Judgement, ...]
    steps: tuple[Mapping[str, Any], ...]
    predictions: str
    environment: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """ACCEPT if every limit is proven, REJECT if one is refuted, else INCONCLUSIVE."""
        verdicts = {judgement.verdict for judgement in self.judgements}
        if Verdict.REJECT in verdicts:
            return Verdict.REJECT
        return Verdict.INCONCLUSIVE if Verdict.INCONCLUSIVE in verdicts else Verdict.ACCEPT

    def row(self, role: str) -> Row:
        return next(row for row in self.rows if row.role == role)

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "metric": self.metric,
            "goal": self.goal.to_json(),
            "seed": self.seed,
            "fingerprint": dict(self.fingerprint),
            "examples": self.examples,
            "rows": [row.to_json() for row in self.rows],
            "judgements": [each.to_json() for each in self.judgements],
            "verdict": self.verdict.value,
            "steps": [dict(step) for step in self.steps],
            "predictions": self.predictions,
            "environment": dict(self.environment),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        given = {name: value for name, value in fields.items() if name != "verdict"}
        return cls(
            **{
                **given,
                "goal": Goal.from_json(fields["goal"]),
                "rows": tuple(map(Row.from_json, fields["rows"])),
                "judgements": tuple(map(Judgement.from_json, fields["judgements"])),
                "steps": tuple(fields["steps"]),
                "notes": tuple(fields["notes"]),
            }
        )
