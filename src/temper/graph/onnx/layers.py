"""The layers of an ONNX file: its products with a stored weight, quantized or not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from temper.core.explanation import Layer
from temper.graph.onnx.packing import packed_shapes

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
BLOCK_PRODUCT = "MatMulNBits"
"""A product whose weight is packed: attributes hold the shape that it stands for, (N, K)."""
PASSING = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Cast", "Identity")
"""Operators that hand a stored weight on to the product that reads it."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A node that multiplies by a stored weight of this shape, which is its input number `position`."""

    node: str
    operator: str
    weight: str
    shape: tuple[int, ...]
    position: int


def products(model: onnx.ModelProto) -> Iterator[Product]:
    """The products of the main graph, in the order of its nodes."""
    stored = {each.name: tuple(each.dims) for each in model.graph.initializer} | packed_shapes(model)
    passed = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in PASSING}
    for node in model.graph.node:
        if node.op_type == BLOCK_PRODUCT:
            sizes = {each.name: each.i for each in node.attribute}
            shape = (sizes["N"], sizes["K"])
            yield Product(node=node.name, operator=node.op_type, weight=node.input[1], shape=shape, position=1)
        if node.op_type not in PRODUCTS:
            continue
        for position, name in reversed(list(enumerate(node.input))):
            while name in passed and name not in stored:
                name = passed[name]
            if len(stored.get(name, ())) > 1:
                yield Product(node=node.name, operator=node.op_type, weight=name, shape=stored[name], position=position)
                break


def placed(layers: Sequence[Layer], model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers, in the graph's order, with the node of the exported file that computes each, as far as it is found.

    The exporter keeps the order but not the names; a product of another shape is none of the layers'.
    """
    rest = list(products(model))
    found = []
    for layer in layers:
        sizes = sorted(layer.shape)
        index = next((index for index, each in enumerate(rest) if sorted(each.shape) == sizes), None)
        if index is None:
            found.append(replace(layer, node=""))
            continue
        found.append(replace(layer, node=rest[index].node))
        rest = rest[index + 1 :]
    return tuple(found)
