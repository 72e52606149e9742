"""From a graph to one ONNX file: the common language of the integer runtimes (float operators around QDQ pairs)."""

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset21 as op

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.graph.quantizers import DEQUANTIZE, QUANTIZE, packed

OPSET = 21


def export_onnx(graph: Graph, file: Path) -> None:
    """Write the graph, its integers packed, as one ONNX file of opset 21.

    Raises: TrialError naming the operator that ONNX cannot express.
    """
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
                input_names=[spec.name for spec in graph.schema.inputs],
                output_names=[spec.name for spec in graph.schema.outputs],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                custom_translation_table={QUANTIZE: _quantize, DEQUANTIZE: _dequantize},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().split("\n", 1)[0]
            raise TrialError(f"the graph cannot be written as ONNX: {cause}") from error
    assert program is not None
    model = program.model_proto
    onnx.checker.check_model(model)
    onnx.save_model(model, file)


def _quantize(x: Any, scale: Any, zero_point: Any, axis: int | None) -> Any:
    # The axis is only written where there is one: some runtimes refuse a scalar scale with an axis.
    return op.QuantizeLinear(x, scale, zero_point, **_axis(axis))


def _dequantize(x: Any, scale: Any, zero_point: Any, axis: int | None) -> Any:
    return op.DequantizeLinear(x, scale, zero_point, **_axis(axis))


def _axis(axis: int | None) -> dict[str, int]:
    return {} if axis is None else {"axis": axis}
