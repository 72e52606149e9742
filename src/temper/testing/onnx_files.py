"""Two small ONNX files to try plugs on: convolutions with a batch norm and a branch, and matrix products."""

from collections.abc import Mapping
from functools import cache
from math import prod

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, numpy_helper

from temper.core.graph import Graph
from temper.core.schema import Array, Schema, TensorSpec
from temper.graph.onnx.program import graph_of
from temper.testing.graphs import Draw, Example

CONVOLUTIONS = """
<ir_version: 8, opset_import: ["": 17]>
convolutions (float[batch, 3, 8, 8] image) => (float[batch, 5] probabilities)
<bool chosen = {1}>
{
    first = Conv <pads = [1, 1, 1, 1]> (image, first_weight, first_bias)
    normed = BatchNormalization (first, scale, shift, mean, variance)
    active = If (chosen) <
        then_branch = then () => (float[batch, 8, 8, 8] high) { high = Relu (normed) },
        else_branch = other () => (float[batch, 8, 8, 8] low) { low = Sigmoid (normed) }
    >
    second = Conv <pads = [1, 1, 1, 1]> (active, second_weight, second_bias)
    rectified = Relu (second)
    pooled = GlobalAveragePool (rectified)
    flat = Flatten (pooled)
    logits = Gemm <transB = 1> (flat, head_weight, head_bias)
    probabilities = Softmax (logits)
}
"""
PRODUCTS = """
<ir_version: 8, opset_import: ["": 17]>
products (float[batch, 12] row, int64[batch] kind) => (float[batch, 4] logits, float[batch, 16] hidden)
{
    wide = MatMul (row, first_weight)
    embedded = Gather (table, kind)
    mixed = Add (wide, embedded)
    hidden = Relu (mixed)
    logits = MatMul (hidden, second_weight)
}
"""
WEIGHTS = {
    "first_weight": (8, 3, 3, 3),
    "first_bias": (8,),
    "scale": (8,),
    "shift": (8,),
    "mean": (8,),
    "variance": (8,),
    "second_weight": (8, 8, 3, 3),
    "second_bias": (8,),
    "head_weight": (5, 8),
    "head_bias": (5,),
}


def onnx_examples() -> tuple[Example, ...]:
    """The two files as graphs, with a dynamic batch; each call returns copies of its own."""
    return tuple(Example(name=each.name, graph=each.graph.copy(), draw=each.draw) for each in _made())


@cache
def _made() -> tuple[Example, ...]:
    products = {"first_weight": (12, 16), "table": (3, 16), "second_weight": (16, 4)}
    return (
        _example("ONNX convolutions", _model(CONVOLUTIONS, WEIGHTS), _images),
        _example("ONNX products", _model(PRODUCTS, products), _rows),
    )


def _model(text: str, shapes: Mapping[str, tuple[int, ...]]) -> ModelProto:
    generator = np.random.default_rng(3)
    model: ModelProto = onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        drawn = generator.normal(0.0, max(prod(shape[1:]), 4) ** -0.5, shape)
        values: Array = (np.abs(drawn) + 0.5 if name in ("scale", "variance") else drawn).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


def _example(name: str, model: ModelProto, draw: Draw) -> Example:
    inputs = draw(np.random.default_rng(0), 2)
    specs = [
        TensorSpec(
            name=value.name,
            shape=(None, *(each.dim_value for each in value.type.tensor_type.shape.dim[1:])),
            dtype="float32" if value.type.tensor_type.elem_type == TensorProto.FLOAT else "int64",
        )
        for value in (*model.graph.input, *model.graph.output)
    ]
    count = len(inputs)
    nesting = "tensor" if len(specs) == count + 1 else "dict"
    schema = Schema(inputs=tuple(specs[:count]), outputs=tuple(specs[count:]), nesting=nesting)
    graph: Graph = graph_of(model, schema, tuple(map(torch.from_numpy, inputs)))
    return Example(name=name, graph=graph, draw=draw)


def _images(generator: np.random.Generator, batch: int) -> tuple[Array, ...]:
    return (generator.standard_normal((batch, 3, 8, 8), dtype=np.float32),)


def _rows(generator: np.random.Generator, batch: int) -> tuple[Array, ...]:
    return generator.standard_normal((batch, 12), dtype=np.float32), generator.integers(0, 3, batch, dtype=np.int64)
