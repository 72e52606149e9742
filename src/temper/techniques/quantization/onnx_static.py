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
from temper.graph.onnx.facts import PRODUCTS, float_products, has_float_products
from temper.graph.onnx.folding import prepared
from temper.graph.onnx.program import first_line, plain_session, serialized, write_model
from temper.techniques.quantization._onnx import (
    Reader,
    behind_products,
    calibration_feeds,
    finished,
    has_convolution,
    saturates,
    silent,
)

SENSITIVITY_CALLS = 4


@dataclass(frozen=True, kw_only=True)
class OnnxStaticQuantization(Technique):
    """Quantize the weights and activations of an ONNX file to 8 bits, with ranges from calibration inputs."""

    needs = (is_onnx, has_calibration, has_integer_runtime, has_float_products, ~has_quantizers)
    leaves = (has_quantizers,)
    reference = "Jacob et al. 2018, arXiv 1712.05877; Wu et al. 2020, arXiv 2004.09602; ONNX Runtime quantization guide"

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
        if self.float_layers:
            trial = _quantized(model, feeds, kept, signed=signed, narrow=narrow, explicit=True)
            kept += most_sensitive(trial, feeds[:SENSITIVITY_CALLS], self.float_layers)
        return finished(self.name, graph, _quantized(model, feeds, kept, signed=signed, narrow=narrow))


def most_sensitive(model: ModelProto, feeds: Sequence[dict[str, Array]], count: int) -> list[str]:
    """The names of the products whose quantized input, alone, changes the outputs most.

    The model must hold its activations: one that only a quantizer's range stands for would go with the quantizer.
    Outputs weigh alike: the error of each counts relative to the mean square of its values.
    """
    inputs = _quantized_inputs(model)
    exact = _outputs(_bypassed(model, inputs), feeds)
    errors = {}
    for name in inputs:
        others = {other: source for other, source in inputs.items() if other != name}
        changed = _outputs(_bypassed(model, others), feeds)
        errors[name] = sum(float(((a - b) ** 2).mean() / max((a**2).mean(), 1e-12)) for a, b in zip(exact, changed))
    return sorted(errors, key=errors.__getitem__, reverse=True)[:count]


def _quantized_inputs(model: ModelProto) -> dict[str, str]:
    """For each product that reads a quantized activation: its name, and that of the value before quantization."""
    makers = {output: node for node in model.graph.node for output in node.output}
    found = {}
    for node in model.graph.node:
        back = makers.get(node.input[0]) if node.op_type in PRODUCTS else None
        forth = makers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        if forth is not None and forth.op_type == "QuantizeLinear":
            found[node.name] = forth.input[0]
    return found


def _bypassed(model: ModelProto, sources: Mapping[str, str]) -> ModelProto:
    """A copy in which these products read the given values, which are not quantized."""
    changed = ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        if node.name in sources:
            node.input[0] = sources[node.name]
    return changed


def _outputs(model: ModelProto, feeds: Sequence[dict[str, Array]]) -> list[Array]:
    """The float outputs for all calls, (calls, ...) each."""
    session = plain_session(serialized(model))
    results = zip(*(session.run(None, feed) for feed in feeds))
    stacked = [np.stack(each) for each in results]
    return [each.astype(np.float64) for each in stacked if each.dtype.kind == "f"]


def _quantized(
    model: ModelProto,
    feeds: Sequence[dict[str, Array]],
    kept: Sequence[str],
    *,
    signed: bool,
    narrow: bool,
    explicit: bool = False,
) -> ModelProto:
    """Run the quantizer; with `explicit` it leaves activations that its ranges would make superfluous (ReLU).

    Raises: TrialError with the quantizer's reason if it fails.
    """
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
                extra_options={"ActivationSymmetric": signed, "QDQKeepRemovableActivations": explicit},
            )
        except Exception as error:
            raise TrialError(f"ONNX Runtime's quantizer failed: {type(error).__name__}: {first_line(error)}") from error
        return onnx.load(file)
