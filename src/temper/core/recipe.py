"""A recipe: ordered techniques and one runtime; the genome of a trial."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from temper.core import catalog
from temper.core.errors import UsageError
from temper.core.runtime import Runtime
from temper.core.technique import Technique


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to a copy of the graph, in order, and what executes the result. Hashable, writable by hand."""

    techniques: tuple[Technique, ...] = ()
    runtime: Runtime

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that name the recipe: equal recipes have equal keys."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {"techniques": [each.to_json() for each in self.techniques], "runtime": self.runtime.to_json()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the JSON form. Raises: UsageError for an unknown plug, knob or value."""
        try:
            techniques = [(catalog.get(Technique, each["name"]), each) for each in fields["techniques"]]
            runtime = catalog.get(Runtime, fields["runtime"]["name"])
        except (KeyError, TypeError) as error:
            raise UsageError(
                'a recipe is {"techniques": [{"name": ..., knobs}], "runtime": {"name": ..., knobs}}, '
                f"and this one is not: {fields!r}"
            ) from error
        steps = tuple(technique.from_json(each) for technique, each in techniques)
        return cls(techniques=steps, runtime=runtime.from_json(fields["runtime"]))

    def __str__(self) -> str:
        return " → ".join(map(str, (*self.techniques, self.runtime)))
