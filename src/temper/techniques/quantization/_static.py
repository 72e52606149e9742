"""Quantizers with fixed ranges: placed in a graph, ranged on calibration inputs, with the bits of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from temper.core.context import Context
from temper.core.graph import Graph
from temper.graph.facts import CONVOLUTIONS, LINEAR, MATRIX_PRODUCTS, is_call
from temper.graph.surgery import clean
from temper.techniques.quantization._insertion import affine, by_weight, insert, quantize_bias, quantize_weight
from temper.techniques.quantization._placement import quantized_edges, range_sources
from temper.techniques.quantization._ranges import Histogram, histograms, joint_range


@dataclass(frozen=True, kw_only=True)
class Bits:
    """How many bits the weights of layers have, and what they read, by the names of their nodes; all others have 8."""

    weights: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, int] = field(default_factory=dict)

    @property
    def least(self) -> int:
        return min((*self.weights.values(), *self.inputs.values()), default=8)

    def at_least(self, width: int) -> "Bits":
        """The same with no fewer bits than these."""
        weights = {name: max(each, width) for name, each in self.weights.items()}
        return Bits(weights=weights, inputs={name: max(each, width) for name, each in self.inputs.items()})

    def weight(self, layer: Node) -> int:
        return self.weights.get(layer.name, 8)

    def grouped(self, consumers: Sequence[Node]) -> dict[int, list[Node]]:
        """The consumers of one activation, in their order, by the bits in which they read it."""
        groups: dict[int, list[Node]] = {}
        for each in consumers:
            groups.setdefault(self.inputs.get(each.name, 8), []).append(each)
        return groups


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """How the range of an activation is taken from its values."""

    method: str
    percentile: float = 99.99


def quantize(
    graph: Graph,
    context: Context,
    *,
    layers: Sequence[Node],
    skipped: Sequence[Node],
    ranges: Ranges,
    everywhere: bool,
    bits: Bits,
    integer_bias: bool,
) -> None:
    """Put quantizers at the layers, and where they join others in integers, in place; `skipped` layers stay in float.

    They suit the context's runtime on its target. Activations that only move, or are joined, have one scale between
    them.
    """
    scheme, calibration = context.runtime.integers, context.calibration
    assert scheme is not None
    assert calibration is not None
    edges = quantized_edges(graph, scheme, everywhere=everywhere, skipped=skipped)
    sources = range_sources(edges)
    seen = histograms(graph, calibration, {each for group in sources.values() for each in group}, ranges.method)
    signed = _signed(edges, sources) if scheme.symmetric_matmul else set()
    if set(scheme.signed_with) & set(context.target.features):
        signed |= {source for source in sources.values() if _is_negative_input(source, seen)}
    shared: dict[tuple[tuple[Node, ...], int], Node] = {}
    for node, consumers in edges.items():
        if not all(each in seen for each in sources[node]):
            continue
        symmetric = sources[node] in signed
        observed = [seen[each] for each in sources[node]]
        for width, readers in bits.grouped(consumers).items():
            key = (sources[node], width)
            if key in shared:
                _, scale, zero, low, high, axis = shared[key].args
                insert(graph, node, readers, scale, zero, (low, high), axis)  # type: ignore[arg-type]
                continue
            ends = joint_range(observed, ranges.method, ranges.percentile, symmetric=symmetric, bits=width)
            shared[key] = insert(graph, node, readers, *affine(*ends, symmetric=symmetric, bits=width))
    for readers in by_weight(graph, layers):
        quantize_weight(graph, readers, ranges.method, bits=bits.weight(readers[0]))
    if integer_bias:
        for layer in layers:
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
