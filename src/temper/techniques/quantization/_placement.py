"""Where quantizers stand: which activations of a graph pass through integers, for which consumers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from temper.core.graph import Graph
from temper.core.runtime import IntegerScheme
from temper.graph.facts import CONVOLUTIONS, LINEAR, MATRIX_PRODUCTS, is_call
from temper.graph.quantizers import is_movement

aten = torch.ops.aten

POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor)
CONCATENATIONS = (aten.cat.default, aten.concat.default, aten.concatenate.default)
CLAMPS = (
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.relu6_.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
    aten.clamp_.default,
)
"""Operators that every runtime fuses into the integer product before them: the quantizer stands behind them."""
ACTIVATIONS = (
    *CLAMPS,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.elu.default,
    aten.elu_.default,
    aten.gelu.default,
    aten.silu.default,
    aten.silu_.default,
    aten.mish.default,
    aten.mish_.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.prelu.default,
    aten.softplus.default,
)
"""Those that runtimes fuse as well whose integer kernels end in any activation.

Not those that saturate, such as sigmoids: their values are the outputs of many networks and want finer steps than their
logits do.
"""
REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.adaptive_avg_pool1d.default, aten.avg_pool1d.default)
"""OpenVINO 2026 computes infinities where these read a convolution over one dimension as integers."""
SIZES = (aten.sym_size.int, aten.sym_numel.default)
"""Operators that read the shape alone."""


def quantized_edges(
    graph: Graph, scheme: IntegerScheme, *, everywhere: bool, skipped: Sequence[Node]
) -> dict[Node, list[Node]]:
    """Each activation that gets a quantizer, with the consumers that read it through the quantizer.

    `skipped` are layers that stay in float. With `everywhere`, sums, concatenations, pools and data movements behind
    convolutions also read quantized values, and the outputs of convolutions are quantized, behind an activation that
    the runtime fuses: one that clamps, or any if it `fuses_activations`. If it `fuses_sums`, one convolution goes into
    a sum unrounded, as part of which the runtime executes the sum. What is computed from stored tensors alone has no
    quantizer: runtimes fold it.
    """
    edges: dict[Node, list[Node]] = {}
    place = _Placement(
        skipped=skipped,
        computed=_computed(graph),
        fused=ACTIVATIONS if scheme.fuses_activations else CLAMPS,
        fuses_sums=scheme.fuses_sums,
        edges=edges,
    )
    # Backwards, so that a movement already knows whether someone reads its output as integers.
    for node in reversed(graph.module.graph.nodes):
        if node.op != "call_function" or node in skipped:
            continue
        wanted = place.read_as_integers(node) if everywhere else _read_by_product(node)
        if everywhere and not wanted and not place.is_fused(node) and not is_call(node, SIZES):
            # Any other reader of a convolution: its output must be quantized for it to run in integers.
            wanted = [each for each in node.all_input_nodes if place.ends_convolution(each)]
        if is_call(node, REDUCTIONS):
            wanted = [each for each in wanted if _rank(each) != 3]
        for source in dict.fromkeys(wanted):
            if source in place.computed and source not in skipped:
                edges.setdefault(source, []).insert(0, node)
    return dict(reversed(edges.items()))


def range_sources(edges: Mapping[Node, Sequence[Node]]) -> dict[Node, tuple[Node, ...]]:
    """The nodes whose values make up the range of each quantized activation; those with equal ones share a quantizer.

    A movement has the range of what it moves. A concatenation in integers and its parts have that of its output, and
    concatenations that share a part have one range together.
    """
    groups: dict[Node, dict[Node, None]] = {node: {node: None} for node in map(_moved_from, edges)}
    for node in edges:
        if not is_call(node, CONCATENATIONS):
            continue
        joined = dict.fromkeys(groups[node])
        for part in map(_moved_from, node.all_input_nodes):
            joined |= groups.get(part, {})
        for member in joined:
            groups[member] = joined
    ranges = {}
    for node in edges:
        group = groups[_moved_from(node)]
        ranges[node] = tuple(each for each in group if len(group) == 1 or is_call(each, CONCATENATIONS))
    return ranges


def _moved_from(node: Node) -> Node:
    """The node whose values this one only moves."""
    while is_movement(node):
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
    return node


def _read_by_product(node: Node) -> list[Node]:
    """The activations that a product multiplies."""
    if is_call(node, (*CONVOLUTIONS, *LINEAR)) and _has_own_weight(node):
        return _nodes(node.args[:1])
    if is_call(node, MATRIX_PRODUCTS):
        return _nodes(node.args[:2])
    return []


@dataclass(frozen=True, kw_only=True)
class _Placement:
    """What is known of a graph while its quantizers are placed: `edges` grows from the end of the graph backwards."""

    skipped: Sequence[Node]
    computed: set[Node]
    fused: tuple[object, ...]
    fuses_sums: bool
    edges: Mapping[Node, Sequence[Node]]

    def read_as_integers(self, node: Node) -> list[Node]:
        """The arguments that this consumer would read through a quantizer, whatever they are."""
        if products := _read_by_product(node):
            return products
        if self.sums_convolution(node) and len(self.computed.intersection(_nodes(node.args[:2]))) == 2:
            return self._rounded_terms(node)
        if is_call(node, POOLS):
            return _nodes(node.args[:1])
        if is_movement(node) and node in self.edges and self.comes_as_integers(_moved_from(node)):
            return _nodes(node.args[:1])
        if is_call(node, CONCATENATIONS) and node in self.edges and self.computed.issuperset(node.all_input_nodes):
            return node.all_input_nodes
        return []

    def _rounded_terms(self, node: Node) -> list[Node]:
        """The terms of a sum behind convolutions that are rounded before it."""
        terms = _nodes(node.args[:2])
        alone = [each for each in terms if self.fuses_sums and self.ends_convolution(each) and len(each.users) == 1]
        return [each for each in terms if each not in alone[-1:]]

    def is_fused(self, node: Node) -> bool:
        """Whether the activation becomes part of what it reads: others than clamps only if nothing else reads that."""
        source = node.args[0] if node.args else None
        alone = isinstance(source, Node) and len(source.users) == 1
        return is_call(node, CLAMPS) or (alone and is_call(node, self.fused))

    def comes_as_integers(self, node: Node) -> bool:
        """Whether an operator in integers makes this: moving bytes is then cheaper than moving floats.

        What floats make is quantized where it is read, so that the runtime can fuse the quantizer into the movement.
        """
        if self.is_fused(node) and isinstance(node.args[0], Node):
            node = node.args[0]
        if is_call(node, (*POOLS, *CONCATENATIONS)) or node.op == "placeholder":
            return True
        return self.ends_convolution(node) or self.sums_convolution(node)

    def sums_convolution(self, node: Node) -> bool:
        """Whether the sum is fused into a convolution; between the layers of a transformer it would lose precision."""
        if not is_call(node, SUMS):
            return False
        return any(self.ends_convolution(_moved_from(each)) for each in _nodes(node.args[:2]))

    def ends_convolution(self, node: object) -> bool:
        """Whether the node is the output of a convolution in integers, with the activation fused into it."""
        if isinstance(node, Node) and self.is_fused(node):
            node = node.args[0]
        return (
            isinstance(node, Node)
            and is_call(node, CONVOLUTIONS)
            and _has_own_weight(node)
            and node not in self.skipped
        )


def _has_own_weight(layer: Node) -> bool:
    """Whether the weight is stored: one that is computed gets no quantizer, and with it the layer no integers."""
    weight = layer.args[1]
    return isinstance(weight, Node) and weight.op == "get_attr"


def _rank(node: Node) -> int | None:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else None


def _nodes(arguments: Sequence[object]) -> list[Node]:
    return [each for each in arguments if isinstance(each, Node)]


def _computed(graph: Graph) -> set[Node]:
    """The float tensors that depend on values of the inputs, rather than on their shapes or on stored tensors alone."""
    dependent: set[Node] = set()
    for node in graph.module.graph.nodes:
        if node.op == "placeholder" or (not is_call(node, SIZES) and not dependent.isdisjoint(node.all_input_nodes)):
            dependent.add(node)
    return {node for node in dependent if node.op != "output" and _is_float(node)}


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.is_floating_point()
