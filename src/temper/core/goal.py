"""What to minimize, what must hold, and under which conditions everything is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from temper.core.errors import UsageError
from temper.core.schema import Schema

Objective = Literal["latency", "size", "memory"]
LIMITS = {
    "latency_s": "typical time of a call",
    "size_bytes": "files of the artifact",
    "memory_bytes": "peak of a process",
}


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Equal for everyone who is measured, never knobs: examples a call, their length, and threads.

    `length` matters to models of dynamic length only: inputs of exactly this length are timed (natural examples, cut
    or repeated), or, where it is None, examples as long as they come. Quality is always judged on natural examples.
    """

    batch: int = 1
    threads: int = 1
    length: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "threads", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")

    def of(self, schema: Schema) -> str:
        """In words, for a model of this schema: where lengths are timed as they come, that is said."""
        as_they_come = schema.dynamic_length and self.length is None
        return f"{self}, lengths as they come" if as_they_come else str(self)

    def to_json(self) -> dict[str, Any]:
        return {"batch": self.batch, "threads": self.threads, "length": self.length}

    def __str__(self) -> str:
        length = "" if self.length is None else f", length {self.length}"
        return f"batch {self.batch}{length}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The quantity to minimize, and the limits that the artifact must provably keep.

    `max_drop` is in units of the metric (0.01 of accuracy is one point; positive is worse). `limits` holds further
    upper limits by name: `latency_s`, `size_bytes`, `memory_bytes`.
    """

    minimize: Objective = "latency"
    max_drop: float = 0.01
    limits: Mapping[str, float] = field(default_factory=dict)
    conditions: Conditions = field(default_factory=Conditions)

    def __post_init__(self) -> None:
        if self.minimize not in get_args(Objective):
            raise UsageError(f"minimize={self.minimize!r} is not one of {', '.join(get_args(Objective))}")
        if not self.max_drop > 0:
            raise UsageError(
                f"max_drop={self.max_drop} must be positive: no finite number of examples proves a drop of exactly "
                "zero. Give the smallest loss that would matter, such as 0.001"
            )
        unknown = self.limits.keys() - LIMITS.keys()
        if unknown:
            raise UsageError(f"no limit is called {', '.join(sorted(unknown))}; there are: {', '.join(LIMITS)}")

    def to_json(self) -> dict[str, Any]:
        limits, conditions = dict(self.limits), self.conditions.to_json()
        return {"minimize": self.minimize, "max_drop": self.max_drop, "limits": limits, "conditions": conditions}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**{**fields, "conditions": Conditions(**fields["conditions"])})
