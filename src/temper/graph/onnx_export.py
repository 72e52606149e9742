"""From a graph to one ONNX file: the common language of the integer runtimes (float operators around QDQ pairs)."""

import logging
import sys
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnx_ir.passes.common import DeduplicateInitializersPass
from onnxscript import opset21 as op
from onnxscript.values import Op, Opset

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.core.schema import Schema, TensorSpec
from temper.graph.conversions import converted
from temper.graph.integer_layers import (
    BLOCK_EMBEDDING,
    BLOCK_LINEAR,
    TENSOR_LINEAR,
    activation_group,
    integer_layers,
)
from temper.graph.onnx.packing import pack_weights
from temper.graph.onnx.program import onnx_model, write_model
from temper.graph.padding import pads_at_convolutions
from temper.graph.quantizers import DEQUANTIZE, QUANTIZE, packed

OPSET = 21
ACTIVATION_GROUP = "activation_group"
"""The key in the file's metadata for how many neighbouring activations share a scale at run time."""
INTEGER_ACTIVATIONS = 4
"""The `accuracy_level` of MatMulNBits whose kernels quantize activations to 8 bits, in the weight's blocks."""
MICROSOFT = Opset("com.microsoft", 1)


def export_onnx(graph: Graph, file: Path) -> None:
    """Write the graph, its integers packed, as one ONNX file of opset 21; an equal graph is not converted twice.

    An ONNX file is written as it is. Raises: TrialError naming the operator that ONNX cannot express.
    """
    model = onnx_model(graph)
    if model is not None:
        write_model(model, file)
    else:
        converted(graph, file, lambda place: _convert(graph, place))


def _convert(graph: Graph, file: Path) -> None:
    module = packed(pads_at_convolutions(integer_layers(graph))).module.eval()
    # From channels-last tensors the exporter makes operators that restore strides, of which ONNX knows nothing.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    shapes = tuple(_dynamic(spec) for spec in graph.schema.inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                tuple(each.contiguous() for each in graph.example),
                dynamo=True,
                input_names=_unused("input", graph.schema.inputs),
                output_names=_unused("output", graph.schema.outputs),
                dynamic_shapes=shapes if any(shapes) else None,
                opset_version=OPSET,
                custom_translation_table={
                    QUANTIZE: _quantize,
                    DEQUANTIZE: _dequantize,
                    TENSOR_LINEAR: _tensor_linear,
                    BLOCK_LINEAR: _block_linear,
                    BLOCK_EMBEDDING: _block_embedding,
                },
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().split("\n", 1)[0]
            raise TrialError(f"the graph cannot be written as ONNX: {cause}") from error
    assert program is not None
    _name(program.model.graph, graph.schema)
    if (group := activation_group(graph)) is not None:
        program.model.metadata_props[ACTIVATION_GROUP] = str(group)
    # Layers that share a weight make the same integers of it. (The pass that hashes wants contiguous tensors.)
    DeduplicateInitializersPass(size_limit=sys.maxsize)(program.model)
    model = program.model_proto
    _strip(model)
    pack_weights(model)
    onnx.checker.check_model(model)
    onnx.save_model(model, file)


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes of where each operator came from, and shapes that every runtime infers.

    That is more than half of a small model's file.
    """
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def _dynamic(spec: TensorSpec) -> dict[int, Any]:
    """The axes of an input whose size is not fixed."""
    return {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if not isinstance(size, int)}


def _unused(kind: str, specs: Sequence[TensorSpec]) -> list[str]:
    """Names that no value inside has: the exporter does not look whether the names it is given are taken."""
    return [f"temper.{kind}.{index}" for index in range(len(specs))]


def _name(nodes: Any, schema: Schema) -> None:
    """Give inputs and outputs their own names, and values inside, or outputs named like another, a suffix."""
    values = [*nodes.inputs, *nodes.outputs, *nodes.initializers.values()]
    values += [value for node in nodes.all_nodes() for value in node.outputs]
    wanted = [spec.name for spec in (*schema.inputs, *schema.outputs)]
    used = {value.name for value in values} | set(wanted)
    ends = dict(zip((*nodes.inputs, *nodes.outputs), wanted))
    for value in values:
        if value not in ends and value.name in wanted:
            value.name = _fresh(value.name, used)
    given: set[str] = set()
    for value, name in ends.items():
        value.name = _fresh(name, used) if name in given else name
        given.add(name)


def _fresh(name: str, used: set[str]) -> str:
    number = next(number for number in count(1) if f"{name}_{number}" not in used)
    used.add(f"{name}_{number}")
    return f"{name}_{number}"


def _quantize(x: Any, scale: Any, zero_point: Any, axis: int | None) -> Any:
    # The axis is only written where there is one: some runtimes refuse a scalar scale with an axis.
    return op.QuantizeLinear(x, scale, zero_point, **_axis(axis))


def _dequantize(x: Any, scale: Any, zero_point: Any, axis: int | None) -> Any:
    return op.DequantizeLinear(x, scale, zero_point, **_axis(axis))


def _axis(axis: int | None) -> dict[str, int]:
    return {} if axis is None else {"axis": axis}


def _contributed(name: str, inputs: Sequence[str], attributes: Sequence[str]) -> Op:
    """An operator that ONNX Runtime adds to the standard, with integer attributes; OpenVINO reads it as well."""
    schema = OpSchema(
        name,
        MICROSOFT.domain,
        MICROSOFT.version,
        inputs=[OpSchema.FormalParameter(each, f"T{index}") for index, each in enumerate(inputs)],
        outputs=[OpSchema.FormalParameter("output", "TO")],
        type_constraints=[
            (f"T{index}", ["tensor(float)", "tensor(uint8)", "tensor(int64)", "tensor(int32)"], "")
            for index in range(len(inputs))
        ]
        + [("TO", ["tensor(float)"], "")],
        attributes=[OpSchema.Attribute(each, OpSchema.AttrType.INT) for each in attributes],
    )
    return Op(MICROSOFT, name, schema)


MATMUL_BITS = _contributed("MatMulNBits", ("A", "B", "scales"), ("K", "N", "bits", "block_size", "accuracy_level"))
GATHER_BLOCKS = _contributed(
    "GatherBlockQuantized",
    ("data", "indices", "scales"),
    ("gather_axis", "quantize_axis", "block_size", "bits"),
)


def _tensor_linear(x: Any, weight: Any, scale: Any) -> Any:
    integers, step, zero_point = op.DynamicQuantizeLinear(x)
    sums = op.Cast(op.MatMulInteger(integers, weight, zero_point), to=onnx.TensorProto.FLOAT)
    return op.Mul(sums, op.Mul(step, scale))


def _block_linear(x: Any, weight: Any, scale: Any, bits: int) -> Any:
    outputs, blocks, held = weight.shape
    block = held * 8 // bits
    return MATMUL_BITS(
        x, weight, scale, K=blocks * block, N=outputs, bits=bits, block_size=block, accuracy_level=INTEGER_ACTIVATIONS
    )


def _block_embedding(weight: Any, indices: Any, scale: Any, bits: int) -> Any:
    block = weight.shape[1] * 8 // bits // scale.shape[1]
    return GATHER_BLOCKS(weight, indices, scale, gather_axis=0, quantize_axis=1, block_size=block, bits=bits)
