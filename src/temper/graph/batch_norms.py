"""Batch norms in evaluation mode behind layers: folded in for execution, and taken out again for training.

In evaluation mode a batch norm is an affine map of each channel, so it can be part of the layer that feeds it:
w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta. A quantized weight keeps its
integers, because the factor of a channel goes into that channel's scale.

Reference: Jacob et al. 2018 (arXiv 1712.05877), section 3.2; Li et al. 2021 (arXiv 2111.03759) on folding and training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from temper.core.graph import Graph
from temper.graph.facts import foldable_batch_norms
from temper.graph.quantizers import is_quantizer
from temper.graph.surgery import add_tensor, clean, set_tensor, tensor_of

LEAST = 1e-12
"""The least scale of a channel that a batch norm multiplies by nothing."""


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """A batch norm that was folded into the layer of that name, and the layer's weight and bias as they were.

    `trained` names those of them that gradients may change.
    """

    layer: str
    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    variance: Tensor
    momentum: float
    epsilon: float
    trained: frozenset[str]


def fold_batch_norms(graph: Graph) -> list[BatchNorm]:
    """Fold every batch norm that can be, in place, also one behind another; what each one was."""
    folded = []
    with torch.no_grad():
        while pairs := foldable_batch_norms(graph):
            folded += [_fold(graph.module, layer, norm) for layer, norm in pairs]
    clean(graph.module)
    return folded


def unfold_batch_norms(graph: Graph, folded: Sequence[BatchNorm]) -> list[Node]:
    """Put batch norms in evaluation mode behind their layers again, in place, with no negative gamma; their nodes.

    A layer that took two of them keeps them. Its weight may have got a quantizer since, whose scales are the caller's
    to set anew. Where gamma was negative, the signs of gamma, of the channel's weights, bias and mean change, so that
    the integers of a weight stay as they are when the batch norm is folded again.
    """
    names = [each.layer for each in folded]
    layers = {node.name: node for node in graph.module.graph.nodes if node.name in names}
    once = [each for each in folded if names.count(each.layer) == 1]
    with torch.no_grad():
        nodes = [_unfold(graph.module, layers[each.layer], each) for each in once]
    clean(graph.module)
    return nodes


def fold_quantized(graph: Graph, norms: Sequence[Node]) -> None:
    """Fold batch norms whose gamma is nowhere negative into layers with quantized weights, in place: integers stay."""
    module = graph.module
    with torch.no_grad():
        for norm in norms:
            layer = norm.args[0]
            assert isinstance(layer, Node)
            quantizer = layer.args[1]
            assert isinstance(quantizer, Node)
            _fold_quantized(module, layer, quantizer, norm)
    clean(module)


def _fold(module: GraphModule, layer: Node, norm: Node) -> BatchNorm:
    known = _of(module, layer, norm, layer.args[1])
    factor = _factor(known)
    name = _target(layer.args[1])
    weight = known.weight.double() * factor.reshape(-1, *[1] * (known.weight.dim() - 1))
    set_tensor(module, name, weight.to(known.weight.dtype))
    _set_bias(module, layer, name, _shifted(known, factor), trainable="weight" in known.trained)
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)
    return known


def _fold_quantized(module: GraphModule, layer: Node, quantizer: Node, norm: Node) -> None:
    known = _of(module, layer, norm, quantizer.args[0])
    factor = _factor(known)
    assert not bool((factor < 0).any()), f"{layer.name}: a negative gamma would turn integers around"
    scale_node, zero_node, *limits, axis = quantizer.args[1:]
    low, high = cast(tuple[int, int], tuple(limits))
    scale, zero = tensor_of(module, scale_node), tensor_of(module, zero_node)
    assert scale is not None
    assert zero is not None
    spread = factor.reshape(-1, *[1] * (known.weight.dim() - 1))
    quantized = torch.ops.temper.quantize  # the integers are those of the graph as it was trained
    integers = torch.clamp(quantized(known.weight, scale, zero, axis), low, high)
    scales = torch.clamp(scale.double() * factor, min=LEAST).to(scale.dtype)
    weight = (known.weight.double() * spread).to(known.weight.dtype)
    again = torch.clamp(quantized(weight, scales, zero, axis), low, high)
    grid = torch.ops.temper.dequantize(integers, scales, zero, axis)
    name = _target(quantizer.args[0])
    # Rounding of the product may carry a weight over the border between two integers.
    set_tensor(module, name, torch.where(again == integers, weight, grid))
    set_tensor(module, _target(scale_node), scales)
    _set_bias(module, layer, name, _shifted(known, factor), trainable="weight" in known.trained)
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)


def _unfold(module: GraphModule, layer: Node, was: BatchNorm) -> Node:
    gamma = torch.ones_like(was.mean) if was.gamma is None else was.gamma
    beta = torch.zeros_like(was.mean) if was.beta is None else was.beta
    sign = torch.where(gamma < 0, -1.0, 1.0)
    source = layer.args[1]
    assert isinstance(source, Node)
    name = _target(source.args[0] if is_quantizer(source) else source)
    set_tensor(module, name, was.weight * sign.reshape(-1, *[1] * (was.weight.dim() - 1)))
    if was.bias is None:
        layer.update_arg(2, None)
    else:
        _set_bias(module, layer, name, was.bias * sign, trainable="bias" in was.trained)
    prefix = f"{name.removesuffix('.weight')}.norm"
    tensors = {"gamma": gamma.abs(), "beta": beta, "mean": was.mean * sign, "variance": was.variance}
    nodes = [
        add_tensor(module, f"{prefix}.{key}", value.clone(), trainable=key in was.trained)
        for key, value in tensors.items()
    ]
    readers = list(layer.users)
    with module.graph.inserting_after(layer):
        norm = module.graph.call_function(
            torch.ops.aten.batch_norm.default, (layer, *nodes, False, was.momentum, was.epsilon, False)
        )
    norm.meta["val"] = layer.meta.get("val")
    for reader in readers:
        reader.replace_input_with(layer, norm)
    return norm


def _of(module: GraphModule, layer: Node, norm: Node, weight_node: object) -> BatchNorm:
    weight = tensor_of(module, weight_node)
    bias = layer.args[2] if len(layer.args) > 2 else None
    parameters = {"weight": weight_node, "bias": bias, "gamma": norm.args[1], "beta": norm.args[2]}
    held = {key: tensor_of(module, node) for key, node in parameters.items()}
    gamma, beta, mean, variance = (_copy(module, argument) for argument in norm.args[1:5])
    momentum, epsilon = norm.args[6:8]
    assert isinstance(momentum, float)
    assert isinstance(epsilon, float)
    assert weight is not None
    assert mean is not None
    assert variance is not None
    return BatchNorm(
        layer=layer.name,
        weight=weight.detach().clone(),
        bias=_copy(module, bias),
        gamma=gamma,
        beta=beta,
        mean=mean,
        variance=variance,
        momentum=momentum,
        epsilon=epsilon,
        trained=frozenset(key for key, tensor in held.items() if tensor is not None and tensor.requires_grad),
    )


def _factor(norm: BatchNorm) -> Tensor:
    """What each channel is multiplied by, (channels,) float64."""
    inverse = torch.rsqrt(norm.variance.double() + norm.epsilon)
    return inverse if norm.gamma is None else inverse * norm.gamma.double()


def _shifted(norm: BatchNorm, factor: Tensor) -> Tensor:
    """The bias of the layer with the batch norm folded in, in the weight's dtype."""
    bias = 0.0 if norm.bias is None else norm.bias.double()
    beta = 0.0 if norm.beta is None else norm.beta.double()
    return ((bias - norm.mean.double()) * factor + beta).to(norm.weight.dtype)


def _set_bias(module: GraphModule, layer: Node, weight: str, bias: Tensor, *, trainable: bool) -> None:
    node = add_tensor(module, f"{weight.removesuffix('.weight')}.bias", bias, trainable=trainable)
    layer.update_arg(2, node) if len(layer.args) > 2 else setattr(layer, "args", (*layer.args, node))


def _target(node: object) -> str:
    assert isinstance(node, Node)
    return str(node.target)


def _copy(module: GraphModule, node: object) -> Tensor | None:
    value = tensor_of(module, node)
    return None if value is None else value.detach().clone()
