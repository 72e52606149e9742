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


def significant(number: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent: 0.495, 12.3, 1,234."""
    if not math.isfinite(number):
        return "unbounded"
    if number == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{decimals}f}".replace("-", "−")


def megabytes(size_bytes: float) -> str:
    """Bytes in words: 105 MB, 0.0113 MB."""
    return f"{significant(size_bytes / 1e6)} MB"
