"""Quantizers on the weights and inputs of linear layers whose activations are quantized at run time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.quantizers import DYNAMIC_QUANTIZE, FAKE_QUANTIZE
from temper.graph.surgery import add_tensor, tensor_of


def weight_of(graph: Graph, node: object) -> Tensor:
    """The stored tensor behind a node that is known to read one."""
    weight = tensor_of(graph.module, node)
    assert weight is not None
    return weight.detach()


def quantize_weight(graph: Graph, layer: Node, position: int, scale: Tensor, integers: tuple[int, int]) -> None:
    """Let a layer read its weight through a symmetric quantizer, with scales by row or by (row, group)."""
    source = layer.args[position]
    assert isinstance(source, Node)
    scale_node = add_tensor(graph.module, f"{source.name}_scale", scale)
    zero_node = add_tensor(graph.module, f"{source.name}_zero_point", torch.zeros_like(scale, dtype=torch.int32))
    with graph.module.graph.inserting_before(layer):
        quantizer = graph.module.graph.call_function(FAKE_QUANTIZE, (source, scale_node, zero_node, *integers, 0))
    layer.update_arg(position, quantizer)


def quantize_inputs(graph: Graph, layers: Sequence[Node], group: int | None) -> None:
    """Let linear layers, in graph order, read their inputs through `dynamic_quantize`; those of one input share it."""
    quantizers: dict[Node, Node] = {}
    for layer in layers:
        source = layer.args[0]
        assert isinstance(source, Node)
        if source not in quantizers:
            with graph.module.graph.inserting_before(layer):
                quantizers[source] = graph.module.graph.call_function(DYNAMIC_QUANTIZE, (source, group))
        layer.update_arg(0, quantizers[source])
