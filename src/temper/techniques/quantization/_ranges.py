"""Ranges of activations and weights: min-max, percentile and least squared error."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from temper.core import lengths
from temper.core.graph import Graph
from temper.core.schema import Array

BINS = 2048
CLIPS = torch.linspace(0.3, 1.0, 71)
"""Shares of the full range that the search for the least squared error tries."""
CHUNK = 32
"""Examples a calibration batch."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How the values of one activation are distributed: counts (BINS,) between `low` and `high`."""

    low: float
    high: float
    counts: Tensor

    @property
    def centers(self) -> Tensor:
        width = (self.high - self.low) / BINS
        return self.low + width * (torch.arange(BINS) + 0.5)


def batches(graph: Graph, calibration: tuple[Array, ...]) -> Iterable[tuple[Tensor, ...]]:
    """The calibration inputs in chunks of one length; a graph of fixed batch gets full batches of its own size only."""
    fixed = graph.schema.batch
    for rows, inputs in lengths.batches(graph.schema, calibration, fixed or CHUNK):
        if fixed in (None, len(rows)):
            yield tuple(map(torch.from_numpy, inputs))


def histograms(graph: Graph, calibration: tuple[Array, ...], wanted: set[Node]) -> dict[Node, Histogram]:
    """The distribution of each wanted node's output over the calibration inputs, in two passes.

    Nodes whose output is ever infinite or NaN (attention masks) have no range that integers could cover: left out.
    """
    extremes: dict[Node, tuple[float, float]] = {}
    boundless: set[Node] = set()

    def widen(node: Node, value: Tensor) -> None:
        if not bool(torch.isfinite(value).all()):
            boundless.add(node)
        elif value.numel():
            low, high = extremes.get(node, (torch.inf, -torch.inf))
            extremes[node] = min(low, float(value.min())), max(high, float(value.max()))

    _observe(graph, calibration, wanted, widen)
    extremes = {node: ends for node, ends in extremes.items() if node not in boundless}
    counts = {node: torch.zeros(BINS) for node in extremes}

    def count(node: Node, value: Tensor) -> None:
        low, high = extremes[node]
        counts[node] += torch.histc(value.float(), BINS, low, high) if high > low else 0

    _observe(graph, calibration, set(extremes), count)
    return {node: Histogram(low=low, high=high, counts=counts[node]) for node, (low, high) in extremes.items()}


def activation_range(histogram: Histogram, method: str, percentile: float, *, symmetric: bool) -> tuple[float, float]:
    """The range to quantize, always with zero in it so that padding is exact.

    `percentile` (in percent) is the share of values inside, cut from both ends alike.
    Reference: Wu et al. 2020 (arXiv 2004.09602), section 3.3 (max, percentile).
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "percentile":
        low, high = _percentile(histogram, percentile)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    if method == "mse":
        low, high = _least_error(histogram, low, high)
    return low, high


def joint_range(
    histograms: Sequence[Histogram], method: str, percentile: float, *, symmetric: bool
) -> tuple[float, float]:
    """The range that covers those of several activations, which share one quantizer."""
    ranges = [activation_range(each, method, percentile, symmetric=symmetric) for each in histograms]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def weight_scales(weight: Tensor, bound: int, method: str) -> Tensor:
    """One scale for each output channel (channels,) of a weight (channels, ...), symmetric on -bound..bound."""
    flat = weight.reshape(len(weight), -1)
    largest = flat.abs().amax(1).clamp_min(1e-12)
    if method != "mse":
        return largest / bound
    errors = torch.stack([_squared_error(flat, clip * largest / bound, bound) for clip in CLIPS])
    return CLIPS[errors.argmin(0)] * largest / bound


def _squared_error(flat: Tensor, scales: Tensor, bound: int) -> Tensor:
    grid = scales[:, None]
    return ((torch.clamp(torch.round(flat / grid), -bound, bound) * grid - flat) ** 2).sum(1)


def _percentile(histogram: Histogram, percentile: float) -> tuple[float, float]:
    outside = (1 - percentile / 100) / 2 * histogram.counts.sum()
    cumulated = histogram.counts.cumsum(0)
    first = int((cumulated <= outside).sum().clamp_max(BINS - 1))
    last = int((cumulated < cumulated[-1] - outside).sum().clamp_max(BINS - 1))
    width = (histogram.high - histogram.low) / BINS
    return min(histogram.low + first * width, 0.0), max(histogram.low + (last + 1) * width, 0.0)


def _least_error(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """The two ends shrunk together by the factor that has the least squared rounding and clipping error."""
    if histogram.high <= histogram.low:
        # A constant has no counts, so that every clip would look free of error.
        return low, high
    centers, levels = histogram.centers, 255
    best, chosen = torch.inf, (low, high)
    for clip in CLIPS.tolist():
        step = max(high - low, 1e-12) * clip / levels
        zero = round(-low * clip / step)
        quantized = (torch.clamp(torch.round(centers / step) + zero, 0, levels) - zero) * step
        error = float((histogram.counts * (quantized - centers) ** 2).sum())
        if error < best:
            best, chosen = error, (low * clip, high * clip)
    return chosen


class _Observer(Interpreter):
    def __init__(self, graph: Graph, wanted: set[Node], see: Callable[[Node, Tensor], None]) -> None:
        super().__init__(graph.module)
        self.wanted, self.see = wanted, see

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if n in self.wanted:
            self.see(n, value)
        return value


def _observe(
    graph: Graph, calibration: tuple[Array, ...], wanted: set[Node], see: Callable[[Node, Tensor], None]
) -> None:
    observer = _Observer(graph, wanted, see)
    with torch.no_grad():
        for batch in batches(graph, calibration):
            observer.run(*batch)
