"""A technique: one way to make a graph cheaper."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError
from temper.core.facts import Fact, is_onnx, is_torch
from temper.core.graph import Graph
from temper.core.knobs import Plug


@dataclass(frozen=True, kw_only=True)
class Technique(Plug):
    """A frozen dataclass of knobs with one method.

    `needs` are facts that must hold before, `leaves` facts that hold after; `undisturbed` are facts that, where they
    hold of the model as it was given, no technique before it may end; `reference` cites the paper. One that is
    `auxiliary` makes nothing cheaper by itself: it prepares for another technique or repairs what that one lost, so a
    search puts it beside others and never tries it alone; a `slow` one takes minutes on large layers, so it is added
    last and by itself. Whoever calls `apply` passes a copy that may be changed in place. An `apply` that finds nothing
    to do raises NoEffect. A technique works on torch programs, and that is the first of its needs, unless it says that
    it needs an ONNX file.
    """

    folder: ClassVar[str] = "temper.techniques"
    needs: ClassVar[tuple[Fact, ...]] = ()
    leaves: ClassVar[tuple[Fact, ...]] = ()
    undisturbed: ClassVar[tuple[Fact, ...]] = ()
    auxiliary: ClassVar[bool] = False
    slow: ClassVar[bool] = False
    reference: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if is_onnx not in cls.needs and is_torch not in cls.needs:
            cls.needs = (is_torch, *cls.needs)

    @abstractmethod
    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph after the technique. Raises: NoEffect; TrialError if a need does not hold."""


def applied(technique: Technique, graph: Graph, context: Context) -> Graph:
    """`technique.apply` on a copy of the graph, between a check of its needs and one of what it leaves.

    Raises: NoEffect; TrialError naming the fact that does not hold.
    """
    for fact in technique.needs:
        if not fact.holds(graph, context):
            raise TrialError(f"{technique.name} needs a graph and context where this holds: {fact}")
    result = technique.apply(graph.copy(), context)
    if _same(graph, result):
        raise NoEffect(f"{technique.name} left the graph as it was")
    for fact in technique.leaves:
        if not fact.holds(result, context):
            raise TrialError(f"{technique.name} promised to leave a graph where this holds: {fact}")
    return result


def _same(before: Graph, after: Graph) -> bool:
    """Whether both have the same operators and the same tensors, bit for bit."""
    if str(before.module.graph) != str(after.module.graph) or before.schema != after.schema:
        return False
    old, new = (
        {**dict(module.named_parameters()), **dict(module.named_buffers())} for module in (before.module, after.module)
    )
    return old.keys() == new.keys() and all(old[name].equal(new[name]) for name in old)
