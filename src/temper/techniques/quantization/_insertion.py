"""Quantizers of activations, weights and biases: their scales and where they are put in."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.quantizers import FAKE_QUANTIZE, is_quantizer
from temper.graph.surgery import add_tensor, tensor_of
from temper.techniques.quantization._ranges import weight_scales

UNSIGNED, SIGNED, WEIGHTS, BIASES = (0, 255), (-128, 127), (-127, 127), (-(2**31), 2**31 - 1)
LARGEST_BIAS = 2**30
"""Half of what 32 bits hold: the products are summed on top of the bias."""


def affine(low: float, high: float, *, symmetric: bool) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Scale, zero point and integer range that map [low, high], which holds zero, onto 8 bits."""
    if symmetric:
        return torch.tensor(max(high, 1e-12) / 127), torch.tensor(0, dtype=torch.int32), SIGNED
    scale = max(high - low, 1e-12) / 255
    return torch.tensor(scale), torch.tensor(round(-low / scale), dtype=torch.int32), UNSIGNED


def quantize_weight(graph: Graph, layer: Node, ranges: str, *, integer_bias: bool) -> None:
    node = layer.args[1]
    weight = tensor_of(graph.module, node)
    assert isinstance(node, Node)
    assert weight is not None
    scales = weight_scales(weight.detach(), WEIGHTS[1], ranges)
    if integer_bias and (bias := _stored_bias(graph, layer)) is not None:
        # Where the weights are tiny, or all zero, their own scale would push the bias out of its integers.
        reach = bias.abs() / (_input_scale(graph, layer) * LARGEST_BIAS)
        scales = torch.maximum(scales, reach.to(scales.dtype))
    insert(graph, node, [layer], scales, torch.zeros_like(scales, dtype=torch.int32), WEIGHTS, axis=0)


def quantize_bias(graph: Graph, layer: Node) -> None:
    """The bias in the units of the integer accumulator, so that rounding it costs next to nothing."""
    if _stored_bias(graph, layer) is None:
        return
    bias, weight = layer.args[2], layer.args[1]
    assert isinstance(bias, Node)
    assert isinstance(weight, Node)
    scales = tensor_of(graph.module, weight.args[1])
    assert scales is not None
    scale = _input_scale(graph, layer) * scales
    insert(graph, bias, [layer], scale, torch.zeros_like(scale, dtype=torch.int32), BIASES, axis=0)


def _stored_bias(graph: Graph, layer: Node) -> Tensor | None:
    """The bias (channels,) that can become integers: it is known, and so is the scale of the layer's input."""
    bias = tensor_of(graph.module, layer.args[2]) if len(layer.args) > 2 else None
    return bias.detach() if bias is not None and bias.dim() == 1 and is_quantizer(layer.args[0]) else None


def _input_scale(graph: Graph, layer: Node) -> Tensor:
    source = layer.args[0]
    assert isinstance(source, Node)
    scale = tensor_of(graph.module, source.args[1])
    assert scale is not None
    return scale


def insert(
    graph: Graph,
    source: Node,
    consumers: Sequence[Node],
    scale: Tensor,
    zero_point: Tensor,
    integers: tuple[int, int],
    axis: int | None = None,
) -> None:
    """Let the consumers, given in graph order, read `source` through one quantizer."""
    module = graph.module
    scale_node = add_tensor(module, f"{source.name}_scale", scale)
    zero_node = add_tensor(module, f"{source.name}_zero_point", zero_point)
    with module.graph.inserting_before(consumers[0]):
        quantizer = module.graph.call_function(FAKE_QUANTIZE, (source, scale_node, zero_node, *integers, axis))
    for consumer in consumers:
        consumer.replace_input_with(source, quantizer)
