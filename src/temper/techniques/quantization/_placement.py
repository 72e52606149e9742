"""Where quantizers stand: which activations of a graph pass through integers, for which consumers."""

from collections.abc import Mapping, Sequence

import torch
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.facts import CONVOLUTIONS, LINEAR, MATRIX_PRODUCTS, is_call
from temper.graph.quantizers import is_movement

aten = torch.ops.aten

POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor)
CONCATENATIONS = (aten.cat.default, aten.concat.default, aten.concatenate.default)
ACTIVATIONS = (
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
)
"""Operators that runtimes fuse into the integer product before them: the quantizer stands behind them."""
REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.adaptive_avg_pool1d.default, aten.avg_pool1d.default)
"""OpenVINO 2026 computes infinities where these read a convolution over one dimension as integers."""
SIZES = (aten.sym_size.int, aten.sym_numel.default)
"""Operators that read the shape alone."""


def quantized_edges(graph: Graph, *, everywhere: bool, skipped: Sequence[Node]) -> dict[Node, list[Node]]:
    """Each activation that gets a quantizer, with the consumers that read it through the quantizer.

    `skipped` are layers that stay in float. With `everywhere`, sums, concatenations, pools and data movements also
    read quantized values, and the outputs of convolutions are quantized, behind an activation that the runtime fuses.
    """
    edges: dict[Node, list[Node]] = {}
    # Backwards, so that a movement already knows whether someone reads its output as integers.
    for node in reversed(graph.module.graph.nodes):
        if node.op != "call_function" or node in skipped:
            continue
        wanted = _read_as_integers(node, edges) if everywhere else _read_by_product(node)
        if everywhere and not wanted and not is_call(node, (*ACTIVATIONS, *SIZES)):
            # Any other reader of a convolution: its output must be quantized for it to run in integers.
            wanted = [each for each in node.all_input_nodes if _ends_convolution(each, skipped)]
        if is_call(node, REDUCTIONS):
            wanted = [each for each in wanted if _rank(each) != 3]
        for source in dict.fromkeys(wanted):
            if _is_float_activation(source) and source not in skipped:
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


def _read_as_integers(node: Node, edges: Mapping[Node, Sequence[Node]]) -> list[Node]:
    """The arguments that this consumer would read through a quantizer, whatever they are."""
    if products := _read_by_product(node):
        return products
    if is_call(node, SUMS) and len(list(filter(_is_float_activation, _nodes(node.args[:2])))) == 2:
        return _nodes(node.args[:2])
    if is_call(node, POOLS):
        return _nodes(node.args[:1])
    if is_movement(node) and node in edges:
        return _nodes(node.args[:1])
    if is_call(node, CONCATENATIONS) and node in edges and all(map(_is_float_activation, node.all_input_nodes)):
        return node.all_input_nodes
    return []


def _ends_convolution(node: object, skipped: Sequence[Node]) -> bool:
    """Whether the node is the output of a convolution in integers, with the activation fused into it."""
    if isinstance(node, Node) and is_call(node, ACTIVATIONS):
        node = node.args[0]
    return isinstance(node, Node) and is_call(node, CONVOLUTIONS) and _has_own_weight(node) and node not in skipped


def _has_own_weight(layer: Node) -> bool:
    """Whether the weight is stored: one that is computed gets no quantizer, and with it the layer no integers."""
    weight = layer.args[1]
    return isinstance(weight, Node) and weight.op == "get_attr"


def _rank(node: Node) -> int | None:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else None


def _nodes(arguments: Sequence[object]) -> list[Node]:
    return [each for each in arguments if isinstance(each, Node)]


def _is_float_activation(node: Node) -> bool:
    """Whether the node computes a float tensor from the inputs, rather than reading a stored one."""
    value = node.meta.get("val")
    return node.op in ("placeholder", "call_function") and (
        not isinstance(value, torch.Tensor) or value.is_floating_point()
    )
