"""Knobs: a value that a person, a search or a JSON file may set, written once, as a dataclass field."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

from temper.core.errors import PlugError, UsageError

Value = str | int | float | bool
"""What a knob may hold: JSON scalars, so that every configuration has one JSON form."""


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One field of a plug: its type and default, the values it may take, its unit and what it does."""

    name: str
    type: type
    default: Value
    among: tuple[Value, ...] | None
    low: float | None
    high: float | None
    unit: str
    help: str
    free: bool

    def check(self, value: object, where: str) -> None:
        """Raise UsageError unless `value` is one that this knob may take."""
        accepted = (int, float) if self.type is float else self.type
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.type is not bool):
            raise UsageError(f"{where}: {self.name}={value!r} is not of type {self.type.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{where}: {self.name}={value!r} is not a finite number")
        bounded = self.low is not None and self.high is not None
        if self.among is not None and value not in self.among and not bounded:
            choices = ", ".join(map(str, self.among))
            raise UsageError(f"{where}: {self.name}={value!r} is not one of {choices}")
        if self.low is not None and cast(float, value) < self.low:
            raise UsageError(f"{where}: {self.name}={value!r} is under the least value, {self.low:g}")
        if self.high is not None and cast(float, value) > self.high:
            raise UsageError(f"{where}: {self.name}={value!r} is over the greatest value, {self.high:g}")


def knob(
    default: Value,
    *,
    among: tuple[Value, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    help: str = "",
    free: bool = False,
) -> Any:
    """A dataclass field that is configuration, validation, search space, command-line option and documentation.

    `among` lists the values that a search tries, in their order, and that alone may be given unless `low` and `high`
    bound what may be given by hand. A knob is `free` if it changes what the model answers, but neither its speed nor
    its size.
    """
    facts = {"among": among, "low": low, "high": high, "unit": unit, "help": help, "free": free}
    return dataclasses.field(default=default, metadata={"knob": facts})


@dataclass(frozen=True, kw_only=True)
class Plug:
    """What every technique, runtime, search and solver is: a frozen dataclass of knobs, named by its file."""

    folder: ClassVar[str]
    """The package whose files are the plugs of this kind, such as `temper.techniques`."""

    name: ClassVar[str]
    """The place of the file in that folder, such as `quantization.post_training`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        folder = getattr(cls, "folder", None)
        if folder is not None and "name" not in cls.__dict__:
            cls.name = cls.__module__.removeprefix(f"{folder}.")

    def __post_init__(self) -> None:
        for each in self.knobs():
            value = getattr(self, each.name)
            each.check(value, self.name)
            if each.type is float:
                # 1 and 1.0 are equal, and equal plugs have one JSON form.
                object.__setattr__(self, each.name, float(value))

    @classmethod
    def knobs(cls) -> tuple[Knob, ...]:
        """The knobs in the order in which they are written."""
        fields = [field for field in dataclasses.fields(cls) if "knob" in field.metadata]
        return tuple(
            Knob(
                name=field.name, type=type(field.default), default=cast(Value, field.default), **field.metadata["knob"]
            )
            for field in fields
        )

    def to_json(self) -> dict[str, Any]:
        """The one JSON form: the name, then every knob."""
        return {"name": self.name, **{each.name: getattr(self, each.name) for each in self.knobs()}}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the JSON form; UsageError names a knob that this plug does not have."""
        given = {key: value for key, value in fields.items() if key != "name"}
        unknown = given.keys() - {each.name for each in cls.knobs()}
        if unknown:
            known = ", ".join(each.name for each in cls.knobs()) or "none"
            raise UsageError(f"{cls.name} has no knob {', '.join(sorted(unknown))}; its knobs are: {known}")
        return cls(**given)

    def __str__(self) -> str:
        changed = [
            f"{each.name}={getattr(self, each.name)}"
            for each in self.knobs()
            if getattr(self, each.name) != each.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


def check_plug(cls: type[Plug]) -> None:
    """Raise PlugError unless every field of the class is a knob with a scalar default."""
    for field in dataclasses.fields(cls):
        if "knob" not in field.metadata or not isinstance(field.default, Value):
            raise PlugError(f"{cls.__module__}: field {field.name!r} must be written as knob(default, ...)")
