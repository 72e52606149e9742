"""Static 8-bit quantization of an ONNX file by ONNX Runtime's own quantizer.

Activations become unsigned and weights signed integers, one scale for each channel of a weight, as ONNX Runtime
documents for x86 processors; where these lack VNNI, weights keep 7 bits, because sums of products would saturate.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError
from temper.core.facts import has_calibration, has_integer_runtime, is_onnx
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.schema import Array
from temper.core.technique import Technique
from temper.graph.facts import has_quantizers
from temper.graph.onnx.facts import float_products, has_float_products
from temper.graph.onnx.folding import prepared
from temper.graph.onnx.program import first_line, write_model
from temper.graph.onnx.sensitivity import sensitivities
from temper.techniques.quantization._onnx import (
    Reader,
    behind_products,
    calibration_feeds,
    finished,
    has_convolution,
    saturates,
    silent,
)
from temper.techniques.quantization._onnx_ranges import activation_ranges

SENSITIVITY_CALLS = 4
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class OnnxStaticQuantization(Technique):
    """Quantize the weights and activations of an ONNX file to 8 bits, with ranges from calibration inputs."""

    needs = (is_onnx, has_calibration, has_integer_runtime, has_float_products, ~has_quantizers)
    leaves = (has_quantizers,)
    reference = "Jacob et al. 2018, arXiv 1712.05877; Wu et al. 2020, arXiv 2004.09602; ONNX Runtime quantization guide"

    ranges: str = knob(
        "minmax",
        among=("minmax", "percentile", "mse"),
        help="how the range of an activation is taken from its values",
        free=True,
    )
    percentile: float = knob(
        99.99, low=50.0, high=100.0, unit="%", help="share of values inside, for ranges=percentile"
    )
    float_layers: int = knob(
        0,
        among=(0, 1, 2, 4, 8),
        help="how many products stay in float: those whose quantization changes the outputs most",
    )

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The file with QuantizeLinear and DequantizeLinear. Raises: NoEffect if every product would stay in float."""
        model, feeds = prepared(graph), calibration_feeds(graph, context)
        products = float_products(model)
        if self.float_layers >= len(products):
            raise NoEffect(f"{self.name}: float_layers={self.float_layers}, and the file has {len(products)} products")
        scheme = context.runtime.integers
        assert scheme is not None
        signed = scheme.symmetric_matmul and not has_convolution(products)
        narrow = saturates(context.target)
        kept = behind_products(model)
        ranges: Ranges = {}
        if self.ranges != "minmax":
            ranges = activation_ranges(model, feeds, kept, self.ranges, self.percentile, symmetric=signed)
        quantized = _quantized(model, feeds, kept, ranges, signed=signed, narrow=narrow)
        if self.float_layers:
            kept += most_sensitive(quantized, model, feeds[:SENSITIVITY_CALLS], self.float_layers)
            quantized = _quantized(model, feeds, kept, ranges, signed=signed, narrow=narrow)
        return finished(self.name, graph, quantized)


def most_sensitive(
    quantized: ModelProto, reference: ModelProto, feeds: Sequence[dict[str, Array]], count: int
) -> list[str]:
    """The names of the products whose quantizers, alone, change the outputs of the float file most."""
    lost = sensitivities(quantized, reference, feeds)
    return sorted(lost, key=lost.__getitem__, reverse=True)[:count]


def _quantized(
    model: ModelProto,
    feeds: Sequence[dict[str, Array]],
    kept: Sequence[str],
    ranges: Ranges,
    *,
    signed: bool,
    narrow: bool,
) -> ModelProto:
    """Run the quantizer, which takes the least and the greatest value of an activation that has no range here.

    Raises: TrialError with the quantizer's reason if it fails.
    """
    ends = {name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in ranges.items()}
    with tempfile.TemporaryDirectory() as folder, silent():
        source, file = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        write_model(model, source)  # a model in memory would be changed
        try:
            quantize_static(
                source,
                file,
                Reader(feeds),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=narrow,
                activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(kept),
                extra_options={"ActivationSymmetric": signed, "TensorQuantOverrides": ends},
            )
        except Exception as error:
            raise TrialError(f"ONNX Runtime's quantizer failed: {type(error).__name__}: {first_line(error)}") from error
        return onnx.load(file)
