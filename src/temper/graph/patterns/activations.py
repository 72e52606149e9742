"""Activation functions written out by hand, recognized by what they compute rather than by how they are written.

Elementwise operators between one tensor and one result are a function of one number. That function is evaluated on a
grid and compared with those that torch has an operator for, so any order of factors, any spelling of a power and any
way to clamp is found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional as F

from temper.core.facts import Fact
from temper.core.graph import Graph
from temper.graph.surgery import tensor_of

aten = torch.ops.aten

GRID = torch.linspace(-30.0, 30.0, 6001, dtype=torch.float64)
TOLERANCE = 1e-6
"""Greatest difference, relative to 1 + |value|; GELU and its approximation by tanh are 5e-4 apart."""
MOST_OPERATORS = 16

_NAMES = (
    *("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "add.Scalar", "sub.Scalar", "mul.Scalar", "div.Scalar"),
    *("rsub.Scalar", "neg.default", "reciprocal.default", "square.default", "pow.Tensor_Scalar", "minimum.default"),
    *("maximum.default", "clamp.default", "clamp_min.default", "clamp_max.default", "relu.default", "relu6.default"),
    *("hardtanh.default", "exp.default", "log.default", "log1p.default", "erf.default", "tanh.default"),
    *("sigmoid.default", "softplus.default", "hardsigmoid.default", "abs.default", "sqrt.default", "rsqrt.default"),
)


def _overloads(names: tuple[str, ...]) -> frozenset[object]:
    """The operators of these names, and those that do the same in place."""
    found = set()
    for name in names:
        packet, overload = name.split(".")
        for each in (packet, f"{packet}_"):
            if overload in (getattr(aten, each).overloads() if hasattr(aten, each) else ()):
                found.add(getattr(getattr(aten, each), overload))
    return frozenset(found)


ELEMENTWISE = _overloads(_NAMES)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A function that torch has an operator for, with the operator's further arguments."""

    target: Any
    keywords: tuple[tuple[str, str], ...] = ()
    function: Callable[[Tensor], Tensor]


ACTIVATIONS = (
    Activation(target=aten.relu.default, function=F.relu),
    Activation(target=aten.gelu.default, function=F.gelu),
    Activation(
        target=aten.gelu.default,
        keywords=(("approximate", "tanh"),),
        function=lambda x: F.gelu(x, approximate="tanh"),
    ),
    Activation(target=aten.silu.default, function=F.silu),
    Activation(target=aten.mish.default, function=F.mish),
    Activation(target=aten.hardswish.default, function=F.hardswish),
    Activation(target=aten.hardsigmoid.default, function=F.hardsigmoid),
    Activation(target=aten.sigmoid.default, function=torch.sigmoid),
    Activation(target=aten.softplus.default, function=F.softplus),
)
_VALUES = [each.function(GRID) for each in ACTIVATIONS]


@dataclass(frozen=True, kw_only=True)
class Handwritten:
    """An activation that is written out: `region`, nodes in graph order, computes it from `source`."""

    source: Node
    region: tuple[Node, ...]
    activation: Activation


def handwritten_activations(graph: Graph) -> list[Handwritten]:
    """The activations that are written out, the widest first where one lies within another; none share a node."""
    found: list[Handwritten] = []
    taken: set[Node] = set()
    for node in reversed(graph.module.graph.nodes):
        if node.target not in ELEMENTWISE or node in taken:
            continue
        written = _match(graph, node)
        if written is not None:
            found.append(written)
            taken |= set(written.region)
    return found


def _match(graph: Graph, result: Node) -> Handwritten | None:
    """The widest region of elementwise operators that ends in `result` and computes a known activation."""
    region, best = {result}, None
    while len(region) <= MOST_OPERATORS:
        # Latest first: whatever reads a node is then in the region before the node itself is looked at.
        inputs = sorted({each for node in region for each in _variables(graph, node)} - region, reverse=True)
        if not inputs:
            break
        if len(inputs) == 1 and (activation := _recognized(graph, region, inputs[0])) is not None:
            best = Handwritten(source=inputs[0], region=tuple(sorted(region)), activation=activation)
        if inputs[0].target not in ELEMENTWISE or not set(inputs[0].users) <= region:
            break
        region.add(inputs[0])
    return best


def _variables(graph: Graph, node: Node) -> list[Node]:
    """The tensors that a node reads, but for stored single numbers."""
    return [each for each in node.all_input_nodes if _number(graph, each) is None]


def _number(graph: Graph, node: Node) -> Tensor | None:
    stored = tensor_of(graph.module, node)
    return stored if stored is not None and stored.dim() == 0 else None


def _recognized(graph: Graph, region: set[Node], source: Node) -> Activation | None:
    """The activation that the region computes from its source, unless it already is that operator or changes it."""
    value = source.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    values: dict[Node, Any] = {source: GRID}
    for node in sorted(region):
        if node.args[0] is source and node.target._schema.is_mutable:  # type: ignore[union-attr]
            return None
        arguments, keywords = map_arg((node.args, node.kwargs), partial(_evaluated, graph, values))
        values[node] = node.target(*arguments, **keywords)  # type: ignore[operator]
    computed = values[node]
    for activation, expected in zip(ACTIVATIONS, _VALUES):
        if bool(((computed - expected).abs() <= TOLERANCE * (1 + expected.abs())).all()):
            alone = len(region) == 1 and node.target in (activation.target, _in_place(activation.target))
            return None if alone else activation
    return None


def _evaluated(graph: Graph, values: dict[Node, Any], node: Node) -> Any:
    return values[node] if node in values else _number(graph, node)


def _in_place(target: Any) -> object:
    packet = getattr(aten, f"{target.overloadpacket.__name__}_", None)
    return getattr(packet, target._overloadname, None)


has_handwritten_activations = Fact(
    "writes activations out by hand", lambda graph, context: bool(handwritten_activations(graph))
)
