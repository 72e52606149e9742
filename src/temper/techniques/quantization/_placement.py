"""Where quantizers stand: which activations of a graph pass through integers, for which consumers."""

from collections.abc import Sequence

import torch
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.facts import CONVOLUTIONS, LINEAR, MATRIX_PRODUCTS, is_call
from temper.graph.quantizers import MOVEMENTS

aten = torch.ops.aten

PRODUCTS = (*CONVOLUTIONS, *LINEAR, *MATRIX_PRODUCTS)
POOLS = (aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor)
ACTIVATIONS = (
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
)
"""Operators that runtimes fuse into the integer product before them: the quantizer stands behind them."""


def quantized_edges(graph: Graph, *, everywhere: bool, skipped: Sequence[Node]) -> dict[Node, list[Node]]:
    """Each activation that gets a quantizer, with the consumers that read it through the quantizer.

    `skipped` are layers that stay in float. With `everywhere`, sums, pools and data movements also read quantized
    values, and the outputs of products are quantized unless an activation follows that the runtime fuses.
    """
    edges: dict[Node, list[Node]] = {}
    # Backwards, so that a movement already knows whether someone reads its output as integers.
    for node in reversed(graph.module.graph.nodes):
        if node.op != "call_function" or node in skipped:
            continue
        for source in dict.fromkeys(_read_as_integers(node, edges, everywhere=everywhere)):
            if _is_float_activation(source) and source not in skipped:
                edges.setdefault(source, []).insert(0, node)
    return dict(reversed(edges.items()))


def range_source(node: Node) -> Node:
    """The node whose values this one only moves: the two share one range."""
    while is_call(node, MOVEMENTS):
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
    return node


def _read_as_integers(node: Node, edges: dict[Node, list[Node]], *, everywhere: bool) -> list[Node]:
    """The arguments that this consumer would read through a quantizer."""
    if is_call(node, (*CONVOLUTIONS, *LINEAR)):
        return _nodes(node.args[:1])
    if is_call(node, MATRIX_PRODUCTS):
        return _nodes(node.args[:2])
    if not everywhere:
        return []
    if is_call(node, SUMS) and len(_nodes(node.args[:2])) == 2:
        return _nodes(node.args[:2])
    if is_call(node, POOLS):
        return _nodes(node.args[:1])
    if is_call(node, MOVEMENTS):
        return _nodes(node.args[:1]) if node in edges else []
    if is_call(node, ACTIVATIONS):
        return []
    # Any other reader of a convolution: its output must be quantized for it to run in integers.
    return [each for each in _nodes(node.args) if is_call(each, CONVOLUTIONS)]


def _nodes(arguments: Sequence[object]) -> list[Node]:
    return [each for each in arguments if isinstance(each, Node)]


def _is_float_activation(node: Node) -> bool:
    """Whether the node computes a float tensor from the inputs, rather than reading a stored one."""
    value = node.meta.get("val")
    return node.op in ("placeholder", "call_function") and (
        not isinstance(value, torch.Tensor) or value.is_floating_point()
    )
