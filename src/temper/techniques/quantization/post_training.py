"""Static 8-bit quantization from a few hundred calibration inputs, without training.

Weights get one symmetric scale an output channel, activations one scale a tensor. Where quantizers stand and
whether activations are signed depends on which integer kernels the runtime has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.facts import has_calibration, has_integer_runtime
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.runtime import IntegerScheme
from temper.core.schema import Array
from temper.core.technique import Technique
from temper.graph.constants import has_foldable_constants
from temper.graph.facts import (
    CONVOLUTIONS,
    LINEAR,
    MATRIX_PRODUCTS,
    float_layers,
    has_float_layers,
    has_foldable_batch_norm,
    has_quantizers,
    is_call,
    weighted_layers,
)
from temper.graph.quantizers import FAKE_QUANTIZE, is_quantizer
from temper.graph.surgery import add_tensor, clean, tensor_of
from temper.techniques.quantization._placement import quantized_edges, range_sources
from temper.techniques.quantization._ranges import batches, histograms, joint_range, weight_scales

UNSIGNED, SIGNED, WEIGHTS, BIASES = (0, 255), (-128, 127), (-127, 127), (-(2**31), 2**31 - 1)
LARGEST_BIAS = 2**30
"""Half of what 32 bits hold: the products are summed on top of the bias."""
SENSITIVITY_EXAMPLES = 64


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
        "minmax", among=("minmax", "percentile", "mse"), help="how the range of an activation is taken from its values"
    )
    percentile: float = knob(
        99.99, low=50.0, high=100.0, unit="%", help="share of values inside, for ranges=percentile"
    )
    placement: str = knob(
        "everywhere",
        among=("everywhere", "products"),
        help="before products only, or around sums, pools and data movements too",
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
            self._quantize(trial, context.calibration, scheme, [])
            names = most_sensitive(trial, context.calibration, self.float_layers)
            kept = [node for node in layers if node.name in names]
        self._quantize(graph, context.calibration, scheme, kept)
        return graph

    def _quantize(
        self, graph: Graph, calibration: tuple[Array, ...], scheme: IntegerScheme, kept: Sequence[Node]
    ) -> None:
        layers = [layer for layer in float_layers(graph) if layer not in kept]
        edges = quantized_edges(graph, everywhere=self.placement == "everywhere", skipped=kept)
        sources = range_sources(edges)
        seen = histograms(graph, calibration, {each for group in sources.values() for each in group})
        signed = _signed(edges, sources) if scheme.symmetric_matmul else set()
        for node, consumers in edges.items():
            if not all(each in seen for each in sources[node]):
                continue
            symmetric = sources[node] in signed
            observed = [seen[each] for each in sources[node]]
            low, high = joint_range(observed, self.ranges, self.percentile, symmetric=symmetric)
            _insert(graph, node, consumers, *_affine(low, high, symmetric=symmetric))
        for layer in layers:
            _quantize_weight(graph, layer, self.ranges, integer_bias=scheme.integer_bias)
            if scheme.integer_bias:
                _quantize_bias(graph, layer)
        clean(graph.module)


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
    """The names of the layers whose quantizers, alone, change the outputs most (mean squared error).

    One run of the quantized graph a layer, over the first calibration inputs, with all other quantizers switched off.
    """
    few = tuple(each[:SENSITIVITY_EXAMPLES] for each in calibration)
    inputs = list(batches(graph, few))
    exact = _outputs(graph, inputs, set())
    errors = {}
    for layer in weighted_layers(graph):
        active: set[object] = {argument for argument in layer.args if is_quantizer(argument)}
        active |= {user for user in layer.users if is_quantizer(user)}
        changed = _outputs(graph, inputs, active)
        errors[layer.name] = sum(float(((a - b) ** 2).sum()) for a, b in zip(exact, changed))
    return set(sorted(errors, key=errors.__getitem__, reverse=True)[:count])


class _Selective(Interpreter):
    """Runs a graph with only the `active` quantizers at work."""

    def __init__(self, graph: Graph, active: set[object]) -> None:
        super().__init__(graph.module)
        self.active = active

    def run_node(self, n: Node) -> object:
        if is_quantizer(n) and n not in self.active:
            return self.env[n.args[0]]  # type: ignore[index]
        return super().run_node(n)


def _outputs(graph: Graph, inputs: Sequence[tuple[Tensor, ...]], active: set[object]) -> list[Tensor]:
    with torch.no_grad():
        return [output for batch in inputs for output in _Selective(graph, active).run(*batch)]


def _affine(low: float, high: float, *, symmetric: bool) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Scale, zero point and integer range that map [low, high], which holds zero, onto 8 bits."""
    if symmetric:
        return torch.tensor(max(high, 1e-12) / 127), torch.tensor(0, dtype=torch.int32), SIGNED
    scale = max(high - low, 1e-12) / 255
    return torch.tensor(scale), torch.tensor(round(-low / scale), dtype=torch.int32), UNSIGNED


def _quantize_weight(graph: Graph, layer: Node, ranges: str, *, integer_bias: bool) -> None:
    node = layer.args[1]
    weight = tensor_of(graph.module, node)
    assert isinstance(node, Node)
    assert weight is not None
    scales = weight_scales(weight.detach(), WEIGHTS[1], ranges)
    if integer_bias and (bias := _stored_bias(graph, layer)) is not None:
        # Where the weights are tiny, or all zero, their own scale would push the bias out of its integers.
        reach = bias.abs() / (_input_scale(graph, layer) * LARGEST_BIAS)
        scales = torch.maximum(scales, reach.to(scales.dtype))
    _insert(graph, node, [layer], scales, torch.zeros_like(scales, dtype=torch.int32), WEIGHTS, axis=0)


def _quantize_bias(graph: Graph, layer: Node) -> None:
    """The bias in the units of the integer accumulator, so that rounding it costs next to nothing."""
    if _stored_bias(graph, layer) is None:
        return
    bias, weight = layer.args[2], layer.args[1]
    assert isinstance(bias, Node)
    assert isinstance(weight, Node)
    scales = tensor_of(graph.module, weight.args[1])
    assert scales is not None
    scale = _input_scale(graph, layer) * scales
    _insert(graph, bias, [layer], scale, torch.zeros_like(scale, dtype=torch.int32), BIASES, axis=0)


def _stored_bias(graph: Graph, layer: Node) -> Tensor | None:
    """The bias (channels,) that can become integers: it is known, and so is the scale of the layer's input."""
    bias = tensor_of(graph.module, layer.args[2]) if len(layer.args) > 2 else None
    return bias.detach() if bias is not None and bias.dim() == 1 and is_quantizer(layer.args[0]) else None


def _input_scale(graph: Graph, layer: Node) -> Tensor:
    source = layer.args[0]
    assert isinstance(source, Node)
    scale = tensor_of(graph.module, source.args[1])
    assert scale is not None
    return scale


def _insert(
    graph: Graph,
    source: Node,
    consumers: Sequence[Node],
    scale: Tensor,
    zero_point: Tensor,
    integers: tuple[int, int],
    axis: int | None = None,
) -> None:
    """Let the consumers, given in graph order, read `source` through one quantizer."""
    module = graph.module
    scale_node = add_tensor(module, f"{source.name}_scale", scale)
    zero_node = add_tensor(module, f"{source.name}_zero_point", zero_point)
    with module.graph.inserting_before(consumers[0]):
        quantizer = module.graph.call_function(FAKE_QUANTIZE, (source, scale_node, zero_node, *integers, axis))
    for consumer in consumers:
        consumer.replace_input_with(source, quantizer)
