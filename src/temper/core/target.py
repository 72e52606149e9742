"""The machine that the artifact is made for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

FASTER = 1.2
"""A float type is worth trying where it multiplies this many times as fast as float32, or faster."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Hardware facts and the runtimes that may be used; the default is this host, detected.

    `precisions` holds floating-point operations a second, for each float type and operator that was tried and ended.
    """

    processor: str
    cores: int
    memory_bytes: int
    features: tuple[str, ...]
    system: str
    versions: Mapping[str, str]
    runtimes: tuple[str, ...]
    precisions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def is_fast(self, kind: str) -> bool:
        """Whether some operator is clearly faster in this float type than in float32, which always counts as fast."""
        exact, rates = self.precisions.get("float32", {}), self.precisions.get(kind, {})
        return kind == "float32" or any(rates.get(each, 0.0) >= FASTER * rate for each, rate in exact.items())

    def to_json(self) -> dict[str, Any]:
        return {
            "processor": self.processor,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "features": list(self.features),
            "system": self.system,
            "versions": dict(self.versions),
            "runtimes": list(self.runtimes),
            "precisions": {kind: dict(rates) for kind, rates in self.precisions.items()},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**{**fields, "features": tuple(fields["features"]), "runtimes": tuple(fields["runtimes"])})


def multiplies(precisions: Mapping[str, Mapping[str, float]]) -> str:
    """What one core was seen to compute in each float type, in a line, in billions of operations a second."""
    found = [
        f"{kind} {' and '.join(f'{rate / 1e9:.3g} ({operator})' for operator, rate in rates.items())}"
        for kind, rates in precisions.items()
    ]
    return "; ".join(found) + " GFLOP/s" if found else "unknown: it could not be tried"
