"""Zeros in front of convolutions: a quantizer behind them moves before them, so that they become the layer's own.

Torch's convolution pads both ends of an axis alike, so the `same` padding of TensorFlow is an operator of its own in
its graphs. ONNX's convolution pads each end as it likes, and torch's exporter folds a pad of floats that stands right
in front of a convolution into it: one kernel less, and the layer's input is again what other layers read.
"""

import torch
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.quantizers import is_quantizer, pads_zeros, same_grid
from temper.graph.surgery import clean, tensor_of

aten = torch.ops.aten

DIMENSIONS: dict[object, int] = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
"""Of what each convolution goes over."""


def pads_at_convolutions(graph: Graph) -> Graph:
    """A copy where convolutions read a pad of quantized values, in place of the quantized values of a pad.

    Both are equal: zero is on every grid whose zero point is one of its integers.
    """
    copy = graph.copy()
    module = copy.module
    for node in [each for each in module.graph.nodes if _pads_convolutions(copy, each)]:
        pad = node.args[0]
        assert isinstance(pad, Node)
        assert callable(node.target)
        assert callable(pad.target)
        source = pad.args[0]
        assert isinstance(source, Node)
        with module.graph.inserting_before(node):
            if not (is_quantizer(source) and same_grid(module, source, node)):
                source = module.graph.call_function(node.target, (source, *node.args[1:]))
            moved = module.graph.call_function(pad.target, (source, *pad.args[1:]), dict(pad.kwargs))
        node.replace_all_uses_with(moved)
    clean(module)
    return copy


def _pads_convolutions(graph: Graph, node: Node) -> bool:
    """Whether the node quantizes, on one grid with a zero, images in zeros, and only convolutions read it."""
    if not is_quantizer(node) or not pads_zeros(node.args[0]):
        return False
    pad, zero_point = node.args[0], tensor_of(graph.module, node.args[2])
    low, high, axis = node.args[3:]
    assert isinstance(pad, Node)
    assert isinstance(low, int)
    assert isinstance(high, int)
    if axis is not None or zero_point is None or not low <= int(zero_point) <= high:
        return False
    sizes = pad.args[1]
    assert isinstance(sizes, (list, tuple))
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        return False
    return all(len(sizes) <= 2 * DIMENSIONS.get(user.target, 0) and user.args[0] is node for user in node.users)
