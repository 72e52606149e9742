"""Static 8-bit quantization of an ONNX file by NNCF, the quantizer that OpenVINO's makers recommend.

It places quantizers where OpenVINO's kernels want them, corrects the bias that rounding adds to every layer, and
for transformers first moves outliers of activations into the weights (SmoothQuant).
"""

from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from temper.core.context import Context
from temper.core.errors import TrialError
from temper.core.facts import Installed, has_calibration, has_integer_runtime, is_onnx
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.facts import has_quantizers
from temper.graph.onnx.facts import float_products, has_float_products
from temper.graph.onnx.folding import prepared
from temper.graph.onnx.program import first_line
from temper.techniques.quantization._onnx import (
    behind_products,
    calibration_feeds,
    finished,
    has_convolution,
    silent,
)

has_nncf = Installed.of("nncf", extra="nncf")


@dataclass(frozen=True, kw_only=True)
class OnnxNncfQuantization(Technique):
    """Quantize the weights and activations of an ONNX file to 8 bits as OpenVINO executes them best."""

    needs = (
        is_onnx,
        has_nncf,
        has_calibration,
        has_integer_runtime,
        has_float_products,
        ~has_quantizers,
    )
    leaves = (has_quantizers,)
    reference = "Kozlov et al. 2020, arXiv 2002.08679; Xiao et al. 2023, arXiv 2211.10438"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The file with QuantizeLinear and DequantizeLinear. Raises: TrialError if the quantizer fails."""
        model, feeds = prepared(graph), calibration_feeds(graph, context)
        with silent():
            try:
                quantized = _quantized(model, feeds)
            except Exception as error:
                raise TrialError(f"nncf.quantize failed: {type(error).__name__}: {first_line(error)}") from error
        return finished(self.name, graph, quantized)


def _quantized(model: ModelProto, feeds: list[dict[str, Any]]) -> ModelProto:
    import nncf

    transformer = not has_convolution(float_products(model))
    quantized: ModelProto = nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        ignored_scope=nncf.IgnoredScope(names=behind_products(model), validate=False),
    )
    return quantized
