"""Quantizers of activations, weights and biases: their scales and where they are put in."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.quantizers import FAKE_QUANTIZE, is_quantizer
from temper.graph.surgery import add_tensor, set_tensor, tensor_of
from temper.techniques.quantization._ranges import weight_scales

BIASES = (-(2**31), 2**31 - 1)
LARGEST_BIAS = 2**30
"""Half of what 32 bits hold: the products are summed on top of the bias."""


def weight_integers(bits: int) -> tuple[int, int]:
    """The integers of a weight: 8 bits mirror around zero, as kernels want; of fewer none is given away."""
    return (-127, 127) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def affine(low: float, high: float, *, symmetric: bool, bits: int = 8) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Scale, zero point and integer range that map [low, high], which holds zero, onto so many bits."""
    if symmetric:
        largest = 2 ** (bits - 1) - 1
        return torch.tensor(max(high, 1e-12) / largest), torch.tensor(0, dtype=torch.int32), (-largest - 1, largest)
    scale = max(high - low, 1e-12) / (2**bits - 1)
    return torch.tensor(scale), torch.tensor(round(-low / scale), dtype=torch.int32), (0, 2**bits - 1)


def quantize_weight(graph: Graph, layers: Sequence[Node], ranges: str, *, bits: int = 8) -> None:
    """Let layers, in graph order, read the one weight that they share through one quantizer: it is stored once."""
    node, integers = layers[0].args[1], weight_integers(bits)
    weight = tensor_of(graph.module, node)
    assert isinstance(node, Node)
    assert weight is not None
    for layer in layers[1:]:
        layer.update_arg(1, node)  # a weight may have several names, and be read where each is used
    scales = weight_scales(weight.detach(), integers, ranges)
    insert(graph, node, layers, scales, torch.zeros_like(scales, dtype=torch.int32), integers, axis=0)


def by_weight(graph: Graph, layers: Sequence[Node]) -> list[list[Node]]:
    """The layers, in their order, together with those that read the same weight."""
    groups: dict[int, list[Node]] = {}
    for layer in layers:
        groups.setdefault(id(tensor_of(graph.module, layer.args[1])), []).append(layer)
    return list(groups.values())


def quantize_bias(graph: Graph, layer: Node) -> None:
    """The bias in the units of the integer accumulator, so that rounding it costs next to nothing.

    Where the weights of a channel are tiny, or all zero, their scale would push the bias out of its integers: it is
    raised there, for all layers that read the weight.
    """
    values = _stored_bias(graph, layer)
    if values is None:
        return
    bias, weight = layer.args[2], layer.args[1]
    assert isinstance(bias, Node)
    assert isinstance(weight, Node)
    assert isinstance(weight.args[1], Node)
    scales = tensor_of(graph.module, weight.args[1])
    assert scales is not None
    read = _input_scale(graph, layer)
    reach = (values.abs() / (read * LARGEST_BIAS)).to(scales.dtype)
    if bool((reach > scales).any()):
        scales = torch.maximum(scales, reach)
        set_tensor(graph.module, _scale_name(weight), scales)
        for other in weight.users:
            if len(other.args) > 2 and is_quantizer(other.args[2]):
                set_tensor(graph.module, _scale_name(other.args[2]), _input_scale(graph, other) * scales)
    scale = read * scales
    insert(graph, bias, [layer], scale, torch.zeros_like(scale, dtype=torch.int32), BIASES, axis=0)


def _scale_name(quantizer: object) -> str:
    assert isinstance(quantizer, Node)
    scale = quantizer.args[1]
    assert isinstance(scale, Node)
    return str(scale.target)


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
    scale: Tensor | Node,
    zero_point: Tensor | Node,
    integers: tuple[int, int],
    axis: int | None = None,
) -> Node:
    """Let the consumers, given in graph order, read `source` through one quantizer, which is returned.

    Scale and zero point are stored, or are nodes that read those of another quantizer.
    """
    module = graph.module
    scale_node = scale if isinstance(scale, Node) else add_tensor(module, f"{source.name}_scale", scale)
    zero_node = zero_point if isinstance(zero_point, Node) else add_tensor(module, f"{source.name}_zero", zero_point)
    with module.graph.inserting_before(consumers[0]):
        quantizer = module.graph.call_function(FAKE_QUANTIZE, (source, scale_node, zero_node, *integers, axis))
    for consumer in consumers:
        consumer.replace_input_with(source, quantizer)
    return quantizer
