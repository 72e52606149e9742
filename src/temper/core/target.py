"""The machine that the artifact is made for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Target:
    """Hardware facts and the runtimes that may be used; the default is this host, detected."""

    processor: str
    cores: int
    memory_bytes: int
    features: tuple[str, ...]
    system: str
    versions: Mapping[str, str]
    runtimes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "processor": self.processor,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "features": list(self.features),
            "system": self.system,
            "versions": dict(self.versions),
            "runtimes": list(self.runtimes),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**{**fields, "features": tuple(fields["features"]), "runtimes": tuple(fields["runtimes"])})
