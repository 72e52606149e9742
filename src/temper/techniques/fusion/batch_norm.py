"""Fold batch norms into the convolutions and linear layers before them.

In evaluation mode a batch norm is an affine map of each channel, so it can be part of the layer that feeds it:
w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.equivalence import check_unchanged, outputs
from temper.graph.facts import foldable_batch_norms, has_foldable_batch_norm
from temper.graph.patterns.constants import has_foldable_constants
from temper.graph.surgery import add_tensor, clean, set_tensor, tensor_of


@dataclass(frozen=True, kw_only=True)
class BatchNormFusion(Technique):
    """Fold every batch norm in evaluation mode into the layer before it, and prove the outputs unchanged."""

    needs = (has_foldable_batch_norm, ~has_foldable_constants)
    leaves = (~has_foldable_batch_norm,)
    auxiliary = True
    reference = "Jacob et al. 2018, arXiv 1712.05877, section 3.2"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph without its foldable batch norms. Raises: NoEffect; TrialError if an output changed."""
        pairs = foldable_batch_norms(graph)
        if not pairs:
            raise NoEffect("fusion.batch_norm found no batch norm behind a convolution or linear layer")
        before = outputs(graph)
        with torch.no_grad():
            while pairs:
                for layer, norm in pairs:
                    _fold(graph.module, layer, norm)
                # A batch norm behind a folded one now stands behind the layer itself.
                pairs = foldable_batch_norms(graph)
        clean(graph.module)
        check_unchanged(self.name, graph, before, "a running variance near zero")
        return graph


def _fold(module: GraphModule, layer: Node, norm: Node) -> None:
    gamma, beta, mean, variance = (_double(module, argument) for argument in norm.args[1:5])
    epsilon = norm.args[7]
    assert isinstance(epsilon, float)
    assert mean is not None
    assert variance is not None
    factor = torch.rsqrt(variance + epsilon) * (1.0 if gamma is None else gamma)
    weight = tensor_of(module, layer.args[1])
    assert weight is not None
    bias_node = layer.args[2] if len(layer.args) > 2 else None
    bias = _double(module, bias_node)
    folded = (weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    shifted = ((0.0 if bias is None else bias) - mean) * factor + (0.0 if beta is None else beta)
    name = str(layer.args[1].target)  # type: ignore[union-attr]
    set_tensor(module, name, folded)
    new_bias = add_tensor(module, f"{name.removesuffix('.weight')}.bias", shifted.to(weight.dtype), trainable=True)
    layer.update_arg(2, new_bias) if len(layer.args) > 2 else setattr(layer, "args", (*layer.args, new_bias))
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)


def _double(module: GraphModule, node: object) -> Tensor | None:
    value = tensor_of(module, node)
    return None if value is None else value.detach().double()
