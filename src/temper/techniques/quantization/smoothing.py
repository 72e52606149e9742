"""Smooth activations before linear layers: outlying channels are scaled down, and the weights that read them up.

In transformers a few channels of an activation are far larger than the rest, and one scale for the whole tensor then
rounds the rest away. Divided by s, channel by channel, the activation is even; weights multiplied by s make up for it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.facts import Fact, has_calibration, has_integer_runtime
from temper.core.graph import Graph
from temper.core.schema import Array
from temper.core.technique import Technique
from temper.graph.equivalence import check_unchanged, outputs
from temper.graph.facts import LINEAR, has_quantizers, is_call
from temper.graph.quantizers import fake_quantize
from temper.graph.surgery import add_tensor, clean, set_tensor, tensor_of
from temper.techniques.quantization._importance import live_rows
from temper.techniques.quantization._insertion import affine, weight_integers
from temper.techniques.quantization._neighbours import owns, producer
from temper.techniques.quantization._ranges import batches, weight_scales

aten = torch.ops.aten

ALPHAS = (0.3, 0.5, 0.65, 0.8, 0.95)
"""How much of the difficulty moves from the activation (1: all of it) into the weights."""
EXAMPLES, ROWS = 64, 512
"""Calibration inputs that are run, and activation vectors kept of them to compare exponents on."""
LARGEST = 1e4
"""Greatest factor a channel gets."""
GAIN = 0.9
"""A layer is smoothed if its error falls at least to this share."""
NORMS = (aten.layer_norm.default, aten.rms_norm.default)
SCALED = (*NORMS, aten.rsqrt.default)
"""Operators of transformers' norms, which bring about activations with outlying channels."""
RELUS = (aten.relu.default, aten.relu_.default)

has_normed_linears = Fact(
    "has float linear layers and norms over features",
    lambda graph, context: bool(groups(graph)) and any(is_call(node, SCALED) for node in graph.module.graph.nodes),
)


@dataclass(frozen=True, kw_only=True)
class ActivationSmoothing(Technique):
    """Even out the channels that linear layers read, each group by the exponent whose integer product errs least."""

    needs = (has_calibration, has_integer_runtime, has_normed_linears, ~has_quantizers)
    auxiliary = True
    reference = (
        "Xiao et al. 2022, arXiv 2211.10438, equation 4; the search for the exponent as in appendix A of 2306.00978"
    )

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with smoothed activations. Raises: NoEffect if none would gain; TrialError if an output changed."""
        assert context.calibration is not None
        assert context.runtime.integers is not None
        symmetric = context.runtime.integers.symmetric_matmul
        before = outputs(graph)
        found = groups(graph)
        smoothed = 0
        for source, activation in _activations(graph, context.calibration, found).items():
            weight = torch.cat([_weight(graph, each) for each in found[source]])
            factor = _factor(activation, weight, symmetric=symmetric)
            if factor is not None:
                _smooth(graph, source, found[source], factor)
                smoothed += 1
        if not smoothed:
            raise NoEffect(f"{self.name} found no linear layer whose integer product would err less")
        clean(graph.module)
        check_unchanged(self.name, graph, before, "a channel that calibration never saw in use")
        return graph


def groups(graph: Graph) -> dict[Node, list[Node]]:
    """The linear layers with float weights of their own, by the activation that they read."""
    found: dict[Node, list[Node]] = {}
    for node in graph.module.graph.nodes:
        if is_call(node, LINEAR) and owns(graph, node.args[1]) and node.args[0].op == "call_function":
            found.setdefault(node.args[0], []).append(node)
    return found


@dataclass(frozen=True, kw_only=True)
class _Activation:
    """Vectors to compare on (rows, channels), and the ends of each channel's range (channels,) over other vectors.

    Smoothed channels all reach their ends, so that whatever lies beyond the ends is clipped: vectors that the ends
    were taken from would not show it. `largest` (channels,) is over all of both.
    """

    rows: Tensor
    low: Tensor
    high: Tensor
    largest: Tensor

    def divided(self, factor: Tensor) -> "_Activation":
        return replace(self, rows=self.rows / factor, low=self.low / factor, high=self.high / factor)

    def rounded(self, *, symmetric: bool) -> Tensor:
        low, high = min(float(self.low.min()), 0.0), max(float(self.high.max()), 0.0)
        if symmetric:
            low, high = -max(-low, high), max(-low, high)
        scale, zero_point, integers = affine(low, high, symmetric=symmetric)
        rounded: Tensor = fake_quantize(self.rows, scale, zero_point, *integers, None)
        return rounded


class _Sampler(Interpreter):
    """Keeps some activation vectors of each wanted node, and the ends of each channel's range."""

    def __init__(self, graph: Graph, wanted: Iterable[Node], rows: int) -> None:
        super().__init__(graph.module)
        self.rows = rows
        self.live: dict[Node, Tensor] = {}
        self.kept: dict[Node, list[tuple[Tensor, ...]]] = {node: [] for node in wanted}

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if n in self.kept:
            assert isinstance(value, Tensor)
            flat = value[self.live[n]]
            fitted, held_out = flat[: (len(flat) + 1) // 2], flat[len(flat) // 2 :]
            rows = held_out[:: max(len(held_out) // self.rows, 1)].clone()
            self.kept[n].append((rows, fitted.amin(0), fitted.amax(0), flat.abs().amax(0)))
        return value


def _activations(graph: Graph, calibration: tuple[Array, ...], wanted: Iterable[Node]) -> dict[Node, _Activation]:
    inputs = list(batches(graph, tuple(each[:EXAMPLES] for each in calibration)))
    sampler = _Sampler(graph, wanted, max(ROWS // max(len(inputs), 1), 1))
    live = live_rows(graph, inputs, sampler.kept)
    with torch.no_grad():
        for index, batch in enumerate(inputs):
            sampler.live = {node: rows[index] for node, rows in live.items()}
            sampler.run(*batch)
    found = {}
    for node, seen in sampler.kept.items():
        rows, lows, highs, largest = map(list, zip(*seen))
        found[node] = _Activation(
            rows=torch.cat(rows),
            low=torch.stack(lows).amin(0),
            high=torch.stack(highs).amax(0),
            largest=torch.stack(largest).amax(0),
        )
    return found


def _factor(activation: _Activation, weight: Tensor, *, symmetric: bool) -> Tensor | None:
    """What to divide each channel by (channels,): s = max|x|^alpha / max|w|^(1 - alpha), or None if nothing gains."""
    fitted, reach = torch.maximum(-activation.low, activation.high), weight.abs().amax(0)
    exact = activation.rows @ weight.T
    best, chosen = GAIN * _error(activation, weight, exact, symmetric=symmetric), None
    for alpha in ALPHAS:
        factor = _balanced(fitted, reach, alpha)
        error = _error(activation.divided(factor), weight * factor, exact, symmetric=symmetric)
        if error < best:
            best, chosen = error, alpha
    return None if chosen is None else _balanced(activation.largest, reach, chosen)


def _balanced(largest: Tensor, reach: Tensor, alpha: float) -> Tensor:
    """The factors for one exponent; only ratios between channels matter, so the typical channel keeps its size."""
    alive = (largest > 0) & (reach > 0)
    raw = largest.clamp_min(1e-9) ** alpha / reach.clamp_min(1e-9) ** (1 - alpha)
    return torch.where(alive, raw / raw[alive].log().mean().exp(), 1.0).clamp(1 / LARGEST, LARGEST)


def _error(activation: _Activation, weight: Tensor, exact: Tensor, *, symmetric: bool) -> float:
    """Squared error of the product of rounded activations and rounded weights (outputs, channels)."""
    integers = weight_integers(8)
    scales = weight_scales(weight, integers, "minmax")
    rounded = fake_quantize(weight, scales, torch.zeros_like(scales, dtype=torch.int32), *integers, 0)
    return float(((activation.rounded(symmetric=symmetric) @ rounded.T - exact) ** 2).sum())


def _smooth(graph: Graph, source: Node, layers: Sequence[Node], factor: Tensor) -> None:
    """Divide what the layers read by the factor and multiply their weights with it."""
    for layer in layers:
        _scale(graph, layer.args[1], factor)
    if not _fold(graph, source, layers, factor):
        module = graph.module
        inverse = add_tensor(module, f"{source.name}_smoothing", (1 / factor).float())
        with module.graph.inserting_after(source):
            scaled = module.graph.call_function(aten.mul.Tensor, (source, inverse))
        scaled.meta = dict(source.meta)
        for layer in layers:
            layer.replace_input_with(source, scaled)


def _fold(graph: Graph, source: Node, layers: Sequence[Node], factor: Tensor) -> bool:
    """Divide what makes the activation instead of the activation, where a norm, a layer or a product can take it."""
    if set(source.users) != set(layers):
        return False
    maker = producer(source, through=RELUS)[-1]
    if is_call(maker, NORMS):
        stored = [each for each in maker.args[2:4] if isinstance(each, Node)]
        foldable = len(maker.args) > 2 and _is_vector(graph, maker.args[2], len(factor))
    elif is_call(maker, LINEAR):
        stored = [each for each in maker.args[1:3] if isinstance(each, Node)]
        foldable = True
    elif is_call(maker, (aten.mul.Tensor,)):
        stored = [each for each in maker.all_input_nodes if _is_vector(graph, each, len(factor))]
        foldable = len(stored) == 1
    else:
        return False
    if not foldable or not all(owns(graph, each) for each in stored):
        return False
    for each in stored:
        value = tensor_of(graph.module, each)
        assert value is not None
        _scale(graph, each, 1 / factor if value.dim() == 1 else 1 / factor[:, None])
    return True


def _is_vector(graph: Graph, argument: object, channels: int) -> bool:
    value = tensor_of(graph.module, argument)
    return value is not None and value.shape == (channels,)


def _scale(graph: Graph, node: object, factor: Tensor) -> None:
    assert isinstance(node, Node)
    value = tensor_of(graph.module, node)
    assert value is not None
    set_tensor(graph.module, str(node.target), (value.detach().double() * factor).to(value.dtype).contiguous())


def _weight(graph: Graph, layer: Node) -> Tensor:
    weight = tensor_of(graph.module, layer.args[1])
    assert weight is not None
    return weight.detach()
