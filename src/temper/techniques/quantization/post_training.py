"""Static 8-bit quantization from a few hundred calibration inputs, without training.

Weights get one symmetric scale an output channel, activations one scale a tensor. Where quantizers stand and
whether activations are signed depends on which integer kernels the runtime has.
"""

from collections.abc import Sequence
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
from temper.graph.facts import float_layers, has_float_layers, has_foldable_batch_norm, has_quantizers
from temper.graph.patterns.constants import has_foldable_constants
from temper.graph.sensitivity import sensitivities
from temper.techniques.quantization._ranges import batches
from temper.techniques.quantization._static import Bits, Ranges, quantize

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
        quantize(
            graph,
            context,
            layers=[layer for layer in float_layers(graph) if layer not in kept],
            skipped=kept,
            ranges=Ranges(method=self.ranges, percentile=self.percentile),
            everywhere=self.placement == "everywhere",
            bits=Bits(),
            integer_bias=scheme.integer_bias,
        )


def most_sensitive(graph: Graph, calibration: tuple[Array, ...], count: int) -> set[str]:
    """The names of the layers whose quantizers, alone, change the outputs most, over the first calibration inputs."""
    few = tuple(each[:SENSITIVITY_EXAMPLES] for each in calibration)
    lost = sensitivities(graph, list(batches(graph, few)))
    return set(sorted(lost, key=lost.__getitem__, reverse=True)[:count])
