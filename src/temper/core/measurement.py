"""A measured, estimated or unavailable quantity: never a bare float."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Status = Literal["measured", "estimated", "unavailable"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A value with its interval, unit and origin.

    `value`, `lower` and `upper` are in `unit` (SI, or `1` for ratios and scores); the interval has the stated
    `confidence`; `samples` counts what it rests on; `details` holds what belongs to it (p50, method, noise floor).
    """

    value: float
    lower: float
    upper: float
    unit: str
    samples: int
    confidence: float = 0.95
    status: Status = "measured"
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "lower": self.lower,
            "upper": self.upper,
            "unit": self.unit,
            "samples": self.samples,
            "confidence": self.confidence,
            "status": self.status,
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**fields)
