"""A measured, estimated or unavailable quantity: never a bare float."""

import math
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
        """JSON knows no infinity: what is unavailable, and a bound that says nothing, are null."""
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "lower": self.lower if math.isfinite(self.lower) else None,
            "upper": self.upper if math.isfinite(self.upper) else None,
            "unit": self.unit,
            "samples": self.samples,
            "confidence": self.confidence,
            "status": self.status,
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        value = math.nan if fields["value"] is None else fields["value"]
        lower = -math.inf if fields["lower"] is None else fields["lower"]
        upper = math.inf if fields["upper"] is None else fields["upper"]
        return cls(**{**fields, "value": value, "lower": lower, "upper": upper})


def megabytes(size_bytes: float) -> str:
    """Bytes in words, in MB to a hundredth, and less than one MB to three digits."""
    size = size_bytes / 1e6
    return f"{size:.2f} MB" if size >= 1 else f"{size:.3g} MB"
