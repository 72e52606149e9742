"""What quantizers do to a graph, layer by layer: the error of each tensor, and what it costs at the outputs.

Quantizers that take their grid from the values of a call do so here too, from calibration inputs.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from temper.core import lengths
from temper.core.explanation import Layer, Quantized
from temper.core.graph import Graph
from temper.core.schema import Array
from temper.graph.cost import cost
from temper.graph.facts import weighted_layers
from temper.graph.quantizers import dynamic_scale, is_dynamic_quantizer, is_quantizer
from temper.graph.surgery import tensor_of

Inputs = Sequence[tuple[Tensor, ...]]
BATCH, MOST = 8, 64
"""Calibration inputs at a time, and in all."""


def sensitivities(graph: Graph, inputs: Inputs) -> dict[str, float]:
    """The share of the outputs' mean square that each layer's quantizers, alone, change, by the node's name.

    One run of the quantized graph a layer, with all other quantizers switched off.
    """
    exact = _outputs(graph, inputs, set())
    power = sum(float((output**2).sum()) for output in exact)
    changed = {}
    for layer in weighted_layers(graph):
        active: set[object] = {argument for argument in layer.args if _rounds(argument)}
        # What is rounded at run time behind a layer is rounded for the layers that read it.
        active |= {user for user in layer.users if is_quantizer(user)}
        outputs = _outputs(graph, inputs, active)
        errors = sum(float(((a - b) ** 2).sum()) for a, b in zip(exact, outputs))
        changed[layer.name] = errors / max(power, 1e-30)
    return changed


def few(graph: Graph, calibration: tuple[Array, ...], time_s: float, batch: int = BATCH) -> list[tuple[Tensor, ...]]:
    """The first calibration inputs, in batches: so many that every layer's sensitivity is measured within the time.

    Where a grid is taken from a whole call, `batch` examples are a call.
    """
    if not calibration:
        return []
    spans = any(is_dynamic_quantizer(node) and node.args[1] is None for node in graph.module.graph.nodes)
    size = graph.schema.batch or (batch if spans else BATCH)
    first = [each[:MOST] for each in calibration]
    batches = [tuple(map(torch.from_numpy, inputs)) for _, inputs in lengths.batches(graph.schema, first, size)]
    whole = [batch for batch in batches if len(batch[0]) == size or graph.schema.dynamic_length] or batches[:1]
    if not whole:
        return []
    began = time.monotonic()
    with torch.no_grad():
        graph(*whole[0])
    each_s = (time.monotonic() - began) * (len(weighted_layers(graph)) + 2)
    return whole[: max(1, int(time_s / each_s))]


def layers_of(graph: Graph, reference: Graph, inputs: Inputs, batch: int) -> tuple[Layer, ...]:
    """The layers of a graph, quantized or not, with FLOPs at that batch; `reference` is the graph before quantizers.

    Weights are compared with those of the reference, since rounding and bias correction change the graph's own.
    """
    flops = {each.name: each.flops for each in cost(graph, batch).nodes}
    quantized = [node for node in graph.module.graph.nodes if _rounds(node)]
    lost = sensitivities(graph, inputs) if quantized else {}
    seen = _Quantizers(graph, set(quantized))
    with torch.no_grad():
        for each in inputs:
            seen.run(*each)
    originals = dict((*reference.module.named_parameters(), *reference.module.named_buffers()))
    found = []
    for node in weighted_layers(graph):
        name, weight = weight_of(graph, node)
        found.append(
            Layer(
                name=name.removesuffix(".weight"),
                operator=str(getattr(node.target, "_opname", node.target)),
                shape=tuple(weight.shape),
                node=node.name,
                flops=flops.get(node.name),
                sensitivity=lost.get(node.name),
                weight=_weight(graph, node, originals.get(name, weight).detach()),
                input=seen.quantized(node.args[0]),
            )
        )
    return tuple(found)


def weight_of(graph: Graph, layer: Node) -> tuple[str, Tensor]:
    """The name and the float master of a weighted layer's weight."""
    node = layer.args[1]
    if is_quantizer(node):
        assert isinstance(node, Node)
        node = node.args[0]
    weight = tensor_of(graph.module, node)
    assert isinstance(node, Node)
    assert weight is not None
    return str(node.target), weight.detach()


def _weight(graph: Graph, layer: Node, original: Tensor) -> Quantized | None:
    quantizer = layer.args[1]
    if not is_quantizer(quantizer):
        return None
    assert isinstance(quantizer, Node)
    scale, zero_point = (tensor_of(graph.module, each) for each in quantizer.args[1:3])
    assert scale is not None
    _, master = weight_of(graph, layer)
    assert callable(quantizer.target)
    rounded = quantizer.target(master, scale, zero_point, *quantizer.args[3:])
    low, high = quantizer.args[3:5]
    bits = (high - low).bit_length()  # type: ignore[operator, union-attr]
    return replace(_Sums.of(original, rounded, scale).quantized(), bits=bits)


class _Selective(Interpreter):
    """Runs a graph with only the `active` quantizers at work."""

    def __init__(self, graph: Graph, active: set[object]) -> None:
        super().__init__(graph.module)
        self.active = active

    def run_node(self, n: Node) -> object:
        if _rounds(n) and n not in self.active:
            return self.env[n.args[0]]  # type: ignore[index]
        return super().run_node(n)


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """What the range and the error of one quantizer come from, over all calls so far."""

    low: float
    high: float
    smallest_scale: float
    largest_scale: float
    error: float
    power: float
    count: int

    @classmethod
    def of(cls, before: Tensor, after: Tensor, scale: Tensor) -> Self:
        return cls(
            low=float(before.min()),
            high=float(before.max()),
            smallest_scale=float(scale.min()),
            largest_scale=float(scale.max()),
            error=float(((before - after) ** 2).sum()),
            power=float((before**2).sum()),
            count=before.numel(),
        )

    def __add__(self, other: Self) -> Self:
        return replace(
            self,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            smallest_scale=min(self.smallest_scale, other.smallest_scale),
            largest_scale=max(self.largest_scale, other.largest_scale),
            error=self.error + other.error,
            power=self.power + other.power,
            count=self.count + other.count,
        )

    def quantized(self) -> Quantized:
        return Quantized(
            original_range=(self.low, self.high),
            scale_factor=(self.smallest_scale, self.largest_scale),
            quantization_error=self.error / self.count,
            relative_error=self.error / max(self.power, 1e-30),
        )


class _Quantizers(Interpreter):
    """Runs a quantized graph and keeps, for each quantizer, the sums that its range and error come from."""

    def __init__(self, graph: Graph, wanted: set[Node]) -> None:
        super().__init__(graph.module)
        self._graph, self._wanted = graph, wanted
        self._sums: dict[Node, _Sums] = {}

    def run_node(self, n: Node) -> Any:
        after = super().run_node(n)
        if n in self._wanted and isinstance(n.args[0], Node):
            before = self.env[n.args[0]]
            assert isinstance(before, Tensor)
            sums = _Sums.of(before, after, self._scale(n, before))
            self._sums[n] = self._sums[n] + sums if n in self._sums else sums
        return after

    def quantized(self, node: object) -> Quantized | None:
        return self._sums[node].quantized() if isinstance(node, Node) and node in self._sums else None

    def _scale(self, quantizer: Node, values: Tensor) -> Tensor:
        if is_dynamic_quantizer(quantizer):
            group = quantizer.args[1]
            assert group is None or isinstance(group, int)
            return dynamic_scale(values, group)
        scale = tensor_of(self._graph.module, quantizer.args[1])
        assert scale is not None
        return scale


def _rounds(node: object) -> bool:
    return is_quantizer(node) or is_dynamic_quantizer(node)


def _outputs(graph: Graph, inputs: Iterable[tuple[Tensor, ...]], active: set[object]) -> list[Tensor]:
    with torch.no_grad():
        runs = (_Selective(graph, active).run(*each) for each in inputs)
        return [output.double() for outputs in runs for output in outputs if output.is_floating_point()]
