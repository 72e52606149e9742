"""Attention in a graph: as one operator, or written out as products around a softmax."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from temper.core.facts import Fact
from temper.core.graph import Graph
from temper.graph.surgery import tensor_of

aten = torch.ops.aten

FUSED = aten.scaled_dot_product_attention.default
PRODUCTS = (aten.matmul.default, aten.bmm.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor)
FACTORS = (aten.mul.Tensor, aten.mul_.Tensor, aten.mul.Scalar)
DIVISORS = (aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar)
FILLS = (aten.masked_fill.Scalar, aten.masked_fill_.Scalar)
PASSED = (aten.dropout.default, aten.dropout_.default, aten.detach.default, aten.contiguous.default, aten.clone.default)
MASKED = -1e4
"""A score that is filled with less than this has no weight after the softmax."""


@dataclass(kw_only=True)
class WrittenAttention:
    """softmax(scale * query @ keys + sum of masks) @ value, written out; `keys` (..., width, tokens) are transposed.

    `masks` are (mask, factor); `fills` are (boolean mask, the score that is put where it is true).
    """

    product: Node
    value: Node
    query: Node | None = None
    keys: Node | None = None
    scale: float = 1.0
    masks: list[tuple[Node, float]] = field(default_factory=list)
    fills: list[tuple[Node, float]] = field(default_factory=list)


def written_attentions(graph: Graph) -> list[WrittenAttention]:
    """The attentions that are written out, in graph order."""
    found = (_match(graph, node) for node in graph.module.graph.nodes if node.target in PRODUCTS)
    return [each for each in found if each is not None]


def fused_attentions(graph: Graph) -> list[Node]:
    """The attention operators that can be written out: without dropout, and with as many key as query heads.

    Where each token sees only those before it, their number must be fixed.
    """
    return [
        node
        for node in graph.module.graph.find_nodes(op="call_function", target=FUSED)
        if not argument(node, 4, "dropout_p", 0.0)
        and not argument(node, 7, "enable_gqa", False)
        and all(isinstance(each.meta.get("val"), Tensor) for each in node.all_input_nodes)
        and (not argument(node, 5, "is_causal", False) or _tokens_are_fixed(node))
    ]


def _tokens_are_fixed(node: Node) -> bool:
    return all(isinstance(each.meta["val"].shape[-2], int) for each in node.all_input_nodes[:2])


def argument(node: Node, position: int, name: str, default: object) -> object:
    """An argument that may be given by position, by name or not at all."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _match(graph: Graph, product: Node) -> WrittenAttention | None:
    weights, value = product.args[0], product.args[1]
    if not isinstance(weights, Node) or not isinstance(value, Node):
        return None
    while _is_own(weights) and weights.target in PASSED and _does_nothing(weights):
        weights = weights.all_input_nodes[0]
    if not _is_own(weights) or weights.target is not aten.softmax.int:
        return None
    if weights.args[1] not in (-1, weights.meta["val"].dim() - 1):
        return None
    found = WrittenAttention(product=product, value=value)
    scores = weights.args[0]
    assert isinstance(scores, Node)
    if not _read_scores(graph, scores, found):
        return None
    return found if _fits(found) else None


def _read_scores(graph: Graph, node: Any, found: WrittenAttention) -> bool:
    """Walk from the softmax up to the product of query and keys, gathering scale and masks on the way."""
    while _is_own(node):
        first: Any = node.args[0]
        if node.target in PRODUCTS:
            query, keys = node.args[0], node.args[1]
            assert isinstance(query, Node)
            assert isinstance(keys, Node)
            found.query, found.keys = _unscaled(graph, query, found), _unscaled(graph, keys, found)
            return True
        if node.target is aten.baddbmm.default:
            mask, query, keys = node.all_input_nodes
            found.masks.append((mask, found.scale * float(node.kwargs.get("beta", 1))))
            found.scale *= float(node.kwargs.get("alpha", 1))
            found.query, found.keys = query, keys
            return True
        if (factor := _factor(graph, node)) is not None:
            found.scale *= factor
        elif node.target in FILLS and isinstance(node.args[2], int | float) and node.args[2] * found.scale <= MASKED:
            mask = node.args[1]
            assert isinstance(mask, Node)
            found.fills.append((mask, node.args[2] * found.scale))
        elif node.target in SUMS and not node.kwargs and isinstance(node.args[1], Node):
            both = node.all_input_nodes
            first = next((each for each in both if _leads_to_product(graph, each)), None)
            if first is None or len(both) != 2:
                return False
            found.masks.append((both[1 - both.index(first)], found.scale))
        else:
            return False
        node = first
    return False


def _leads_to_product(graph: Graph, node: Node) -> bool:
    """Whether the scores come through this argument of a sum."""
    return _read_scores(graph, node, WrittenAttention(product=node, value=node))


def _unscaled(graph: Graph, node: Node, found: WrittenAttention) -> Node:
    """The query or keys before they are multiplied by a number, which becomes a part of the scale."""
    factor = _factor(graph, node) if _is_own(node) and not node.target._schema.is_mutable else None  # type: ignore[union-attr]
    if factor is None:
        return node
    found.scale *= factor
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _factor(graph: Graph, node: Node) -> float | None:
    """The number that the node multiplies its first argument by."""
    if node.target not in (*FACTORS, *DIVISORS):
        return None
    number = node.args[1]
    if isinstance(number, Node):
        stored = tensor_of(graph.module, number)
        number = stored.item() if stored is not None and stored.dim() == 0 else None
    if not isinstance(number, int | float) or not isinstance(node.args[0], Node):
        return None
    return number if node.target in FACTORS else 1 / number if number else None


def _fits(found: WrittenAttention) -> bool:
    """Whether one operator takes these shapes: equal leading dimensions, and masks that can be broadcast."""
    assert found.query is not None
    assert found.keys is not None
    query, keys, value = (node.meta["val"] for node in (found.query, found.keys, found.value))
    if not all(each.dtype == torch.float32 and each.dim() in (3, 4) for each in (query, keys, value)):
        return False
    masks = [node.meta["val"] for node, _ in (*found.masks, *found.fills)]
    leading = [tuple(map(str, each.shape[:-2])) for each in (query, keys, value)]
    return (
        leading[0] == leading[1] == leading[2]
        and all(each.dim() <= query.dim() for each in masks)
        and all(mask.meta["val"].dtype == torch.float32 for mask, _ in found.masks)
    )


def _is_own(node: Node) -> bool:
    """Whether the node is an operator whose result has a single reader, and all of whose tensors have a known form."""
    operator = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    return operator and len(node.users) == 1 and all(_form_is_known(each) for each in (node, *node.all_input_nodes))


def _form_is_known(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _does_nothing(node: Node) -> bool:
    return "dropout" not in str(node.target) or not node.args[2]


has_written_attention = Fact("writes attention out by hand", lambda graph, context: bool(written_attentions(graph)))
has_fused_attention = Fact("has attention as one operator", lambda graph, context: bool(fused_attentions(graph)))
