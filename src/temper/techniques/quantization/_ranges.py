"""Ranges of activations and weights: min-max, percentile, least squared error and least loss of information."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from temper.core import lengths
from temper.core.graph import Graph
from temper.core.schema import Array
from temper.techniques.quantization._importance import live_rows

BINS = 2048
CLIPS, LOW_BIT_CLIPS = torch.linspace(0.3, 1.0, 71), torch.linspace(0.05, 1.0, 96)
"""Shares of the full range that the search for the least squared error tries; with few bits the best are small."""
LOW_BITS = 4
MASK = -1e4
"""Attention masks stand for minus infinity by a number below this; no trained activation reaches it."""
CHUNK = 32
"""Examples a calibration batch."""
EXAMPLES = 256
"""Ranges settle with fewer examples than there may be: the first ones are taken."""


Key = TypeVar("Key", Node, str)


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


def histograms(graph: Graph, calibration: tuple[Array, ...], wanted: set[Node], method: str) -> dict[Node, Histogram]:
    """The distribution of each wanted node's output over the first calibration inputs, as `counted` takes it.

    Of sequences (batch, positions, channels) only the positions count that some output depends on: padding would widen
    the range for nothing.
    """
    calibration = tuple(each[:EXAMPLES] for each in calibration)
    sequences = [node for node in graph.module.graph.nodes if node in wanted and _is_sequence(node)]
    live = live_rows(graph, batches(graph, calibration), sequences) if sequences else {}
    return counted(lambda nodes, see: _observe(graph, calibration, nodes, live, see), wanted, method)


def counted(
    observe: Callable[[set[Key], Callable[[Key, Tensor], None]], None], wanted: set[Key], method: str
) -> dict[Key, Histogram]:
    """The distribution of each wanted activation, in two passes of `observe(wanted, see)`.

    That calls `see` with an activation and some of its values, until it has shown all values of all that are wanted.
    The method `minmax` reads the ends alone, so that one pass will do, and nothing is counted.

    Activations that are ever infinite, NaN or a mask's stand-in for minus infinity have no range that integers could
    cover: left out.
    """
    extremes: dict[Key, tuple[float, float]] = {}
    boundless: set[Key] = set()

    def widen(key: Key, value: Tensor) -> None:
        if not value.numel():
            return
        low, high = float(value.min()), float(value.max())
        if not MASK < low <= high < torch.inf:
            boundless.add(key)
        before = extremes.get(key, (torch.inf, -torch.inf))
        extremes[key] = min(low, before[0]), max(high, before[1])

    observe(wanted, widen)
    extremes = {key: ends for key, ends in extremes.items() if key not in boundless}
    counts = {key: torch.zeros(BINS) for key in extremes}
    found = {key: Histogram(low=low, high=high, counts=counts[key]) for key, (low, high) in extremes.items()}
    if method == "minmax":
        return found

    def count(key: Key, value: Tensor) -> None:
        low, high = extremes[key]
        counts[key] += torch.histc(value.float(), BINS, low, high) if high > low else 0

    observe(set(extremes), count)
    return found


def joint_range(
    histograms: Sequence[Histogram], method: str, percentile: float, *, symmetric: bool, bits: int = 8
) -> tuple[float, float]:
    """The range to quantize activations that share one quantizer, always with zero in it so that padding is exact.

    `percentile` (in percent) is the share of values inside, cut from both ends alike. `mse` and `entropy` shrink the
    full range to where the squared error, or the divergence from the exact distribution, is the least.
    Reference: Wu et al. 2020 (arXiv 2004.09602), section 3.3; entropy: Migacz 2017, 8-bit inference with TensorRT.
    """
    ends = [_percentile(each, percentile) if method == "percentile" else (each.low, each.high) for each in histograms]
    low, high = min(0.0, *(low for low, _ in ends)), max(0.0, *(high for _, high in ends))
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    # A constant has no counts, so that every clip would look free of error.
    spread = [each for each in histograms if each.high > each.low]
    if method not in LOSSES or not spread:
        return low, high
    loss, levels, clips = LOSSES[method], 2**bits - 1, _clips(bits).tolist()

    def lost(ends: tuple[float, float]) -> float:
        return sum(loss(each, *ends, levels) for each in spread)

    low, high = min(((low * clip, high * clip) for clip in clips), key=lost)
    if not symmetric and low < 0 < high:
        # Each end alone, where they need not mirror.
        low, high = min(((low * clip, high) for clip in clips), key=lost)
        low, high = min(((low, high * clip) for clip in clips), key=lost)
    return low, high


def weight_scales(weight: Tensor, integers: tuple[int, int], method: str) -> Tensor:
    """One scale for each output channel (channels,) of a weight (channels, ...) on these integers around zero."""
    flat = weight.reshape(len(weight), -1)
    full = flat.abs().amax(1).clamp_min(1e-12) / integers[1]
    if method != "mse":
        return full
    clips = _clips(integers[1].bit_length() + 1)
    errors = torch.stack([_squared_error(flat, clip * full, integers) for clip in clips])
    return clips[errors.argmin(0)] * full


def _clips(bits: int) -> Tensor:
    return LOW_BIT_CLIPS if bits <= LOW_BITS else CLIPS


def _squared_error(flat: Tensor, scales: Tensor, integers: tuple[int, int]) -> Tensor:
    grid = scales[:, None]
    return ((torch.clamp(torch.round(flat / grid), *integers) * grid - flat) ** 2).sum(1)


def _percentile(histogram: Histogram, percentile: float) -> tuple[float, float]:
    outside = (1 - percentile / 100) / 2 * histogram.counts.sum()
    cumulated = histogram.counts.cumsum(0)
    first = int((cumulated <= outside).sum().clamp_max(BINS - 1))
    last = int((cumulated < cumulated[-1] - outside).sum().clamp_max(BINS - 1))
    width = (histogram.high - histogram.low) / BINS
    return min(histogram.low + first * width, 0.0), max(histogram.low + (last + 1) * width, 0.0)


def _integers(centers: Tensor, low: float, high: float, levels: int) -> tuple[Tensor, float, int]:
    """The integer, 0..levels, that each value becomes, the scale and the zero point."""
    step = max(high - low, 1e-12) / levels
    zero = round(-low / step)
    return torch.clamp(torch.round(centers / step) + zero, 0, levels), step, zero


def _error(histogram: Histogram, low: float, high: float, levels: int) -> float:
    """Mean squared error of rounding and clipping."""
    integers, step, zero = _integers(histogram.centers, low, high, levels)
    errors = ((integers - zero) * step - histogram.centers) ** 2
    return float((histogram.counts * errors).sum() / histogram.counts.sum())


def _divergence(histogram: Histogram, low: float, high: float, levels: int) -> float:
    """Kullback-Leibler divergence from the clipped distribution to what is left of it on the integer grid.

    Each integer's mass is spread evenly over the bins, among those that become it, where there was any.
    """
    integers, _, _ = _integers(histogram.centers, low, high, levels)
    index = integers.long()
    inside = (histogram.centers >= low) & (histogram.centers <= high)
    share = histogram.counts / histogram.counts.sum()
    # What is clipped counts as the outermost values in the exact distribution alone: this is what clipping costs.
    first, last = int(inside.long().argmax()), int(BINS - 1 - inside.flip(0).long().argmax())
    exact = share * inside
    exact[first] += share[:first].sum()
    exact[last] += share[last + 1 :].sum()
    occupied = (share > 0) & inside
    mass = torch.zeros(levels + 1).index_add(0, index, share * inside)
    bins = torch.zeros(levels + 1).index_add(0, index, occupied.float())
    spread = torch.where(occupied, mass[index] / bins[index].clamp_min(1), 0.0)
    spread = spread / spread.sum().clamp_min(1e-12)
    return float((exact * ((exact + 1e-9) / (spread + 1e-9)).log()).sum())


LOSSES = {"mse": _error, "entropy": _divergence}


class _Observer(Interpreter):
    def __init__(self, graph: Graph, wanted: set[Node], see: Callable[[Node, Tensor], None]) -> None:
        super().__init__(graph.module)
        self.wanted, self.see = wanted, see
        self.live: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if n in self.wanted:
            assert isinstance(value, Tensor)
            self.see(n, value[self.live[n]] if n in self.live else value)
        return value


def _observe(
    graph: Graph,
    calibration: tuple[Array, ...],
    wanted: set[Node],
    live: Mapping[Node, Sequence[Tensor]],
    see: Callable[[Node, Tensor], None],
) -> None:
    observer = _Observer(graph, wanted, see)
    with torch.no_grad():
        for index, batch in enumerate(batches(graph, calibration)):
            observer.live = {node: rows[index] for node, rows in live.items()}
            observer.run(*batch)


def _is_sequence(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 3
