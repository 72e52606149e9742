"""Quantize linear layers to 8 bits, their activations while the model runs: no calibration."""

from dataclasses import dataclass
from math import gcd

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.facts import has_dynamic_runtime
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.facts import (
    float_linears,
    has_float_linears,
    has_foldable_batch_norm,
    has_quantizers,
    is_mostly_linear,
)
from temper.graph.surgery import clean
from temper.techniques.quantization._layers import quantize_inputs, quantize_weight, weight_of
from temper.techniques.quantization._ranges import weight_scales

INTEGERS = (-127, 127)
STEP = 16
"""Runtimes that quantize rows in groups take groups, and so rows, of a multiple of this: one vector of integers."""


@dataclass(frozen=True, kw_only=True)
class DynamicQuantization(Technique):
    """Weights with one scale an output channel; activations with scales taken from the values of each call."""

    needs = (has_dynamic_runtime, has_float_linears, is_mostly_linear, ~has_quantizers, ~has_foldable_batch_norm)
    leaves = (has_quantizers,)
    reference = "Yao et al. 2022, arXiv 2206.01861; Zafrir et al. 2019, arXiv 1910.06188"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with quantizers. Raises: NoEffect if no layer has rows that the runtime can quantize."""
        scheme = context.runtime.integers
        assert scheme is not None
        layers, group = float_linears(graph), None
        if scheme.dynamic == "rows":
            layers = [layer for layer in layers if weight_of(graph, layer.args[1]).shape[1] % STEP == 0]
            group = gcd(*(weight_of(graph, layer.args[1]).shape[1] for layer in layers))
        if not layers:
            raise NoEffect(f"{self.name}: {context.runtime} wants inputs in multiples of {STEP}; no linear layer has")
        for layer in layers:
            scales = weight_scales(weight_of(graph, layer.args[1]), INTEGERS, "minmax")
            quantize_weight(graph, layer, 1, scales, INTEGERS)
        quantize_inputs(graph, layers, group)
        clean(graph.module)
        return graph
