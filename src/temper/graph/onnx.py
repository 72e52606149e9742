"""From a graph to one ONNX file: the common language of the integer runtimes (float operators around QDQ pairs)."""

import logging
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset21 as op

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.core.schema import Schema, TensorSpec
from temper.graph.conversions import converted
from temper.graph.quantizers import DEQUANTIZE, QUANTIZE, packed

OPSET = 21


def export_onnx(graph: Graph, file: Path) -> None:
    """Write the graph, its integers packed, as one ONNX file of opset 21; an equal graph is not converted twice.

    Raises: TrialError naming the operator that ONNX cannot express.
    """
    converted(graph, file, lambda place: _convert(graph, place))


def _convert(graph: Graph, file: Path) -> None:
    module = packed(graph).module.eval()
    dynamic = graph.schema.dynamic_batch
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in graph.example) if dynamic else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                graph.example,
                dynamo=True,
                input_names=_unused("input", graph.schema.inputs),
                output_names=_unused("output", graph.schema.outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                custom_translation_table={QUANTIZE: _quantize, DEQUANTIZE: _dequantize},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().split("\n", 1)[0]
            raise TrialError(f"the graph cannot be written as ONNX: {cause}") from error
    assert program is not None
    _name(program.model.graph, graph.schema)
    model = program.model_proto
    onnx.checker.check_model(model)
    onnx.save_model(model, file)


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
