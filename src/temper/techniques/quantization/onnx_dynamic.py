"""Dynamic 8-bit quantization of an ONNX file by ONNX Runtime's own quantizer.

The weights of matrix products and LSTMs become integers; the range of an activation is taken anew in every call, so
no calibration is needed and no outlier in another example widens it. Convolutions stay in float: theirs would be
slower than in float.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from temper.core.context import Context
from temper.core.errors import TrialError
from temper.core.facts import has_integer_runtime, is_onnx
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.facts import has_quantizers
from temper.graph.onnx.facts import has_float_matrix_products
from temper.graph.onnx.folding import prepared
from temper.graph.onnx.program import first_line, write_model
from temper.techniques.quantization._onnx import finished, saturates, silent

OPERATORS = ["MatMul", "Gemm", "LSTM"]


@dataclass(frozen=True, kw_only=True)
class OnnxDynamicQuantization(Technique):
    """Quantize the weights of an ONNX file's matrix products and LSTMs, and their inputs in every call."""

    needs = (is_onnx, has_integer_runtime, has_float_matrix_products, ~has_quantizers)
    leaves = (has_quantizers,)
    reference = "Zafrir et al. 2019, arXiv 1910.06188, section 3; ONNX Runtime quantization guide"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The file with quantized weights. Raises: NoEffect; TrialError if the quantizer fails."""
        model = prepared(graph)
        with tempfile.TemporaryDirectory() as folder, silent():
            source, file = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
            write_model(model, source)  # a model in memory would be changed
            try:
                quantize_dynamic(
                    source,
                    file,
                    op_types_to_quantize=OPERATORS,
                    per_channel=True,
                    reduce_range=saturates(context.target),
                    weight_type=QuantType.QInt8,
                    extra_options={"MatMulConstBOnly": True},
                )
            except Exception as error:
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise TrialError(f"ONNX Runtime's dynamic quantizer failed: {reason}") from error
            quantized = onnx.load(file)
        return finished(self.name, graph, quantized)
