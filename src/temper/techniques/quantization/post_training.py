"""Static 8-bit quantization from a few hundred calibration inputs, without training.

Weights get one symmetric scale an output channel, activations one scale a tensor. Where quantizers stand and
whether activations are signed depends on which integer kernels the runtime has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.facts import has_calibration, has_integer_runtime
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.runtime import IntegerScheme
from temper.core.schema import Array
from temper.core.technique import Technique
from temper.graph.facts import (
    CONVOLUTIONS,
    LINEAR,
    MATRIX_PRODUCTS,
    float_layers,
    has_float_layers,
    has_foldable_batch_norm,
    has_quantizers,
    is_call,
)
from temper.graph.patterns.constants import has_foldable_constants
from temper.graph.sensitivity import sensitivities
from temper.graph.surgery import clean
from temper.techniques.quantization._insertion import affine, insert, quantize_bias, quantize_weight
from temper.techniques.quantization._placement import quantized_edges, range_sources
from temper.techniques.quantization._ranges import Histogram, batches, histograms, joint_range

SENSITIVITY_EXAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class PostTrainingQuantization(Technique):
    """Quantize weights and activations to 8 bits, with ranges from calibration inputs."""

    needs = (
        has_calibration,
        has_integer_runtime,
        has_float_layers,
        ~has_quantizers,
        ~has_foldable_constants,
        ~has_foldable_batch_norm,
    )
    leaves = (has_quantizers,)
    reference = "Jacob et al. 2018, arXiv 1712.05877; Wu et al. 2020, arXiv 2004.09602"

    ranges: str = knob(
        "minmax",
        among=("minmax", "percentile", "mse", "entropy"),
        help="how the range of an activation is taken from its values",
        free=True,
    )
    percentile: float = knob(
        99.99, low=50.0, high=100.0, unit="%", help="share of values inside, for ranges=percentile"
    )
    placement: str = knob(
        "everywhere",
        among=("everywhere", "products"),
        help="before products only, or around the sums, pools and data movements of convolutions too",
    )
    float_layers: int = knob(
        0,
        among=(0, 1, 2, 4, 8),
        help="how many layers stay in float: those whose quantization changes the outputs most",
    )

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with quantizers. Raises: NoEffect if every layer would stay in float."""
        scheme = context.runtime.integers
        assert scheme is not None
        assert context.calibration is not None
        layers = float_layers(graph)
        if self.float_layers >= len(layers):
            raise NoEffect(
                f"{self.name}: float_layers={self.float_layers}, and the graph has only {len(layers)} layers"
            )
        kept: list[Node] = []
        if self.float_layers:
            trial = graph.copy()
            self._quantize(trial, context, scheme, [])
            names = most_sensitive(trial, context.calibration, self.float_layers)
            kept = [node for node in layers if node.name in names]
        self._quantize(graph, context, scheme, kept)
        return graph

    def _quantize(self, graph: Graph, context: Context, scheme: IntegerScheme, kept: Sequence[Node]) -> None:
        assert context.calibration is not None
        layers = [layer for layer in float_layers(graph) if layer not in kept]
        edges = quantized_edges(
            graph,
            everywhere=self.placement == "everywhere",
            skipped=kept,
            fuses_activations=scheme.fuses_activations,
        )
        sources = range_sources(edges)
        seen = histograms(
            graph, context.calibration, {each for group in sources.values() for each in group}, self.ranges
        )
        signed = _signed(edges, sources) if scheme.symmetric_matmul else set()
        if set(scheme.signed_with) & set(context.target.features):
            signed |= {source for source in sources.values() if _is_negative_input(source, seen)}
        for node, consumers in edges.items():
            if not all(each in seen for each in sources[node]):
                continue
            symmetric = sources[node] in signed
            observed = [seen[each] for each in sources[node]]
            low, high = joint_range(observed, self.ranges, self.percentile, symmetric=symmetric)
            insert(graph, node, consumers, *affine(low, high, symmetric=symmetric))
        for layer in layers:
            quantize_weight(graph, layer, self.ranges, integer_bias=scheme.integer_bias)
            if scheme.integer_bias:
                quantize_bias(graph, layer)
        clean(graph.module)


def _is_negative_input(source: tuple[Node, ...], seen: Mapping[Node, Histogram]) -> bool:
    """Whether an input of the graph, with negative values, is what the range is of."""
    return any(each.op == "placeholder" and each in seen and seen[each].low < 0 for each in source)


def _signed(edges: Mapping[Node, Sequence[Node]], sources: Mapping[Node, tuple[Node, ...]]) -> set[tuple[Node, ...]]:
    """The sources of values that matrix products read and convolutions do not, wherever they were moved to."""
    readers: dict[tuple[Node, ...], list[Node]] = {}
    for node, consumers in edges.items():
        readers.setdefault(sources[node], []).extend(consumers)
    return {
        source
        for source, consumers in readers.items()
        if any(is_call(each, (*LINEAR, *MATRIX_PRODUCTS)) for each in consumers)
        and not any(is_call(each, CONVOLUTIONS) for each in consumers)
    }


def most_sensitive(graph: Graph, calibration: tuple[Array, ...], count: int) -> set[str]:
    """The names of the layers whose quantizers, alone, change the outputs most, over the first calibration inputs."""
    few = tuple(each[:SENSITIVITY_EXAMPLES] for each in calibration)
    lost = sensitivities(graph, list(batches(graph, few)))
    return set(sorted(lost, key=lost.__getitem__, reverse=True)[:count])
