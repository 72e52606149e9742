"""Which bits the weights of each layer get, so that all of them fill no more than so many bytes."""

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from temper.core.graph import Graph
from temper.graph.batch_norms import fold_batch_norms
from temper.graph.facts import float_layers
from temper.graph.quantizers import fake_quantize
from temper.graph.surgery import set_tensor, tensor_of
from temper.techniques.quantization._insertion import weight_integers
from temper.techniques.quantization._ranges import weight_scales
from temper.training.device import on

WIDTHS = (2, 3, 4, 5, 6, 8)
INPUT_BITS = ENDS_BITS = 8
PER_CHANNEL = 8
"""Bytes of a channel's scale and bias."""


def mixed(graph: Graph, images: Tensor, labels: Tensor, limit: int) -> str:
    """The knob `layer_bits` for weights that take at most `limit` bytes, first and last layer with 8 bits.

    The images lie on the device that computes. From 8 bits down, the layer and width whose own loss on the labelled
    images grows least for each byte saved comes next. A layer's loss is measured with all others in float: Nagel et al.
    2021 (arXiv 2106.08295), section 4.2.
    """
    graph = graph.copy()
    fold_batch_norms(graph)
    layers = float_layers(graph)
    with on(graph, images.device.type):
        losses = {layer: _losses(graph, layer, images, labels) for layer in layers[1:-1]}
    bits = dict.fromkeys(layers, ENDS_BITS)
    while sum(_bytes(graph, layer, bits[layer]) for layer in layers) > limit:
        steps = [(layer, width) for layer in losses for width in WIDTHS if width < bits[layer]]

        def cost(step: tuple[Node, int]) -> float:
            layer, width = step
            saved = _bytes(graph, layer, bits[layer]) - _bytes(graph, layer, width)
            return (losses[layer][width] - losses[layer][bits[layer]]) / saved

        layer, width = min(steps, key=cost)
        bits[layer] = width
    names = {layer: str(layer.args[1].target).removesuffix(".weight") for layer in layers}
    return ",".join(f"{names[layer]}={width}/{INPUT_BITS}" for layer, width in bits.items())


def _losses(graph: Graph, layer: Node, images: Tensor, labels: Tensor) -> dict[int, float]:
    """The loss on the images with the weight of this layer alone in so many bits."""
    name = str(layer.args[1].target)
    weight = tensor_of(graph.module, layer.args[1]).detach().clone()
    found = {}
    for width in WIDTHS:
        scales = weight_scales(weight.cpu(), weight_integers(width), "mse")
        zeros = torch.zeros(scales.shape, dtype=torch.int32)
        rounded = fake_quantize(weight.cpu(), scales, zeros, *weight_integers(width), 0)
        set_tensor(graph.module, name, rounded.to(weight.device))
        with torch.no_grad():
            outputs = torch.cat([graph(part)[0] for part in images.split(500)])
        found[width] = float(F.cross_entropy(outputs, labels))
    set_tensor(graph.module, name, weight)
    return found


def _bytes(graph: Graph, layer: Node, width: int) -> float:
    weight = tensor_of(graph.module, layer.args[1])
    return weight.numel() * width / 8 + PER_CHANNEL * len(weight)
