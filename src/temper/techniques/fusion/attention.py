"""Replace attention that is written out by hand with the one operator that computes it.

PyTorch then never stores the scores of all pairs of tokens, and in a quantized graph OpenVINO keeps the whole of
attention in one kernel.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.equivalence import check_unchanged, outputs
from temper.graph.facts import has_quantizers
from temper.graph.patterns.attention import FUSED, WrittenAttention, has_written_attention, written_attentions
from temper.graph.surgery import call, clean

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class AttentionFusion(Technique):
    """Put `scaled_dot_product_attention` where products around a softmax compute it."""

    needs = (has_written_attention, ~has_quantizers)
    leaves = (~has_written_attention,)
    auxiliary = True
    reference = "Vaswani et al. 2017, arXiv 1706.03762, equation 1; Dao et al. 2022, arXiv 2205.14135"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with attention as single operators. Raises: NoEffect; TrialError if an output changed."""
        found = written_attentions(graph)
        if not found:
            raise NoEffect(f"{self.name} found no softmax between two matrix products")
        before = outputs(graph)
        for written in found:
            with graph.module.graph.inserting_before(written.product):
                _fuse(graph, written)
        clean(graph.module)
        check_unchanged(self.name, graph, before, "a row of scores that is masked throughout")
        return graph


def _fuse(graph: Graph, written: WrittenAttention) -> None:
    assert written.keys is not None
    nodes, product = graph.module.graph, written.product
    operands = [written.query, _transposed(graph, written.keys), written.value, _mask(graph, written)]
    # ONNX takes attention with an axis of heads only.
    headless = product.meta["val"].dim() == 3
    if headless:
        operands = [_with_heads(graph, each) for each in operands]
    fused = nodes.call_function(FUSED, (*operands, 0.0, False), {"scale": written.scale})
    fused.meta["val"] = product.meta["val"].unsqueeze(1) if headless else product.meta["val"]
    if headless:
        fused = call(graph.module, aten.squeeze.dim, fused, 1)
    product.replace_all_uses_with(fused)
    nodes.erase_node(product)


def _with_heads(graph: Graph, node: Node | None) -> Node | None:
    """The operand (batch, ...) with one head, (batch, 1, ...); a mask of fewer dimensions stays."""
    if node is None or node.meta["val"].dim() < 3:
        return node
    return call(graph.module, aten.unsqueeze.default, node, 1)


def _mask(graph: Graph, written: WrittenAttention) -> Node | None:
    """All masks as one that is added to the scores, or None."""
    terms = [
        mask if factor == 1 else call(graph.module, aten.mul.Tensor, mask, factor) for mask, factor in written.masks
    ]
    for where, score in written.fills:
        zeros = call(graph.module, aten.zeros_like.default, where, dtype=torch.float32)
        terms.append(call(graph.module, aten.masked_fill.Scalar, zeros, where, score))
    if not terms:
        return None
    total = terms[0]
    for term in terms[1:]:
        total = call(graph.module, aten.add.Tensor, total, term)
    return total


def _transposed(graph: Graph, keys: Node) -> Node:
    """The keys (..., tokens, width): what was transposed, where a transposition is all that was done."""
    rank = keys.meta["val"].dim()
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    moved: Any = keys.args[1:3] if keys.target is aten.transpose.int else keys.args[1:2]
    by_transpose = keys.target is aten.transpose.int and {each % rank for each in moved} == set(swapped[-2:])
    by_permute = keys.target is aten.permute.default and [each % rank for each in moved[0]] == swapped
    if by_transpose or by_permute:
        source = keys.args[0]
        assert isinstance(source, Node)
        return source
    return call(graph.module, aten.transpose.int, keys, -2, -1)
