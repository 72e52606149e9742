"""Facts: named predicates computed on a graph and what stands around it, never flags that someone asserts."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from temper.core.graph import ONNX

if TYPE_CHECKING:
    from temper.core.context import Context
    from temper.core.graph import Graph


@dataclass(frozen=True)
class Fact:
    """A statement about (graph, context) that is computed each time it is asked; `~fact` is its negation."""

    name: str
    holds: "Callable[[Graph, Context], bool]"

    def __invert__(self) -> "Fact":
        negated = self.name.removeprefix("not ")
        name = negated if negated != self.name else f"not {self.name}"
        return Fact(name, lambda graph, context: not self.holds(graph, context))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fact) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Installed(Fact):
    """That an optional package can be imported; its name carries the command that adds it."""

    @classmethod
    def of(cls, package: str, extra: str) -> Self:
        """The fact about a package that this extra of temper installs."""
        found = importlib.util.find_spec
        return cls(
            f"has the package {package!r} (pip install 'temper-ml[{extra}]')",
            lambda graph, context: found(package) is not None,
        )


is_onnx = Fact("is an ONNX file", lambda graph, context: hasattr(graph.module, ONNX))
is_torch = Fact("is a torch program", lambda graph, context: not hasattr(graph.module, ONNX))
has_calibration = Fact("has calibration data", lambda graph, context: context.calibration is not None)
has_training = Fact("has training data and a loss", lambda graph, context: context.training is not None)
has_integer_runtime = Fact(
    "is meant for a runtime with integer kernels", lambda graph, context: context.runtime.integers is not None
)
has_dynamic_runtime = Fact(
    "is meant for a runtime that quantizes activations at run time",
    lambda graph, context: context.runtime.integers is not None and context.runtime.integers.dynamic is not None,
)
has_block_runtime = Fact(
    "is meant for a runtime that multiplies weights of few bits",
    lambda graph, context: context.runtime.integers is not None and context.runtime.integers.blocks,
)
