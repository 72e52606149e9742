"""Write attention out as two matrix products around a softmax, so that quantization reaches the products.

One operator for attention stays in float in a quantized graph; its products do not. ONNX Runtime is faster for it,
OpenVINO, which has a float kernel for the whole, is not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.facts import has_integer_runtime
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.equivalence import check_unchanged, outputs
from temper.graph.facts import has_quantizers
from temper.graph.patterns.attention import argument, fused_attentions, has_fused_attention
from temper.graph.surgery import add_tensor, call, clean

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class AttentionProducts(Technique):
    """Put products and a softmax in the place of each attention operator."""

    needs = (has_integer_runtime, has_fused_attention, ~has_quantizers)
    leaves = (~has_fused_attention,)
    reference = "Vaswani et al. 2017, arXiv 1706.03762, equation 1"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with attention written out. Raises: NoEffect; TrialError if an output changed."""
        found = fused_attentions(graph)
        if not found:
            raise NoEffect(f"{self.name} found no attention operator without dropout and grouped queries")
        before = outputs(graph)
        for attention in found:
            with graph.module.graph.inserting_before(attention):
                written = _written(graph, attention)
            attention.replace_all_uses_with(written)
            graph.module.graph.erase_node(attention)
        clean(graph.module)
        check_unchanged(self.name, graph, before, "a row of scores that is masked throughout")
        return graph


def _written(graph: Graph, attention: Node) -> Node:
    """softmax(scale * query @ transposed key + mask) @ value."""
    query, key, value = attention.args[:3]
    assert isinstance(query, Node)
    width = query.meta["val"].shape[-1]
    scale = argument(attention, 6, "scale", None) or width**-0.5
    scaled = call(graph.module, aten.mul.Tensor, query, scale)
    scores = call(graph.module, aten.matmul.default, scaled, call(graph.module, aten.transpose.int, key, -2, -1))
    lowest = torch.finfo(torch.float32).min
    mask = argument(attention, 3, "attn_mask", None)
    if isinstance(mask, Node) and mask.meta["val"].dtype == torch.bool:
        hidden = call(graph.module, aten.logical_not.default, mask)
        scores = call(graph.module, aten.masked_fill.Scalar, scores, hidden, lowest)
    elif isinstance(mask, Node):
        scores = call(graph.module, aten.add.Tensor, scores, mask)
    if argument(attention, 5, "is_causal", False):
        rows, columns = scores.meta["val"].shape[-2:]
        future = torch.ones(rows, columns, dtype=torch.bool).triu(1)
        stored = add_tensor(graph.module, f"{attention.name}_future", future)
        stored.meta["val"] = _form(query, future)
        scores = call(graph.module, aten.masked_fill.Scalar, scores, stored, lowest)
    return call(graph.module, aten.matmul.default, call(graph.module, aten.softmax.int, scores, -1), value)


def _form(like: Node, stored: Tensor) -> Tensor:
    """The stored tensor as one of those, without data, that nodes carry."""
    form: Tensor = like.meta["val"].new_empty(stored.shape, dtype=stored.dtype)
    return form
