"""Equalize the channels between two layers: what one layer's weights are divided by, the next one's are multiplied by.

A channel whose values are small next to the others of its tensor loses most to a scale that they share. Between two
layers that only a ReLU or a pool separates, each channel may be scaled freely, so all are brought to like ranges.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.facts import Fact
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.equivalence import check_unchanged, outputs
from temper.graph.facts import CONVOLUTIONS, LINEAR, has_foldable_batch_norm, has_quantizers, is_call
from temper.graph.surgery import set_tensor, tensor_of
from temper.techniques.quantization._neighbours import HOMOGENEOUS, owns, readers_behind

aten = torch.ops.aten

ROUNDS = 40
CONVERGED = 1.01
"""Greatest factor of a channel that counts as equal already."""
LARGEST = 1e4
"""Greatest factor a channel gets: beyond it the channel is as good as dead."""

has_consecutive_layers = Fact(
    "has layers that only a scale-free operator separates", lambda graph, context: any(True for _ in pairs(graph))
)


@dataclass(frozen=True, kw_only=True)
class CrossLayerEqualization(Technique):
    """Scale the channels between consecutive layers until their weights use like ranges; the outputs stay."""

    needs = (has_consecutive_layers, ~has_quantizers, ~has_foldable_batch_norm)
    auxiliary = True
    reference = "Nagel et al. 2019, arXiv 1906.04721, section 4.1, equations 9 to 11"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with equalized weights. Raises: NoEffect if they are; TrialError if an output changed."""
        chain = [pair for pair in pairs(graph) if _fits(graph, *pair)]
        before = outputs(graph)
        moved = 1.0
        for _ in range(ROUNDS):
            # Pairs of one chain share layers, so each pair disturbs its neighbours a little.
            factors = [_equalize(graph, first, second) for first, second in chain]
            moved = max(moved, *factors) if factors else moved
            if max(factors, default=1.0) < CONVERGED:
                break
        if moved < CONVERGED:
            raise NoEffect(f"{self.name} found no two consecutive layers whose channels differ in range")
        check_unchanged(self.name, graph, before, "a channel whose weights nearly vanish")
        return graph


def pairs(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Consecutive layers with float weights of their own, and nothing between but operators that a scale passes.

    A batch norm between them is no obstacle here: folded, it is part of the first layer.
    """
    for layer in graph.module.graph.nodes:
        if not _is_layer(graph, layer):
            continue
        for reader in readers_behind(layer, (*HOMOGENEOUS, aten.batch_norm.default)):
            if _is_layer(graph, reader) and _channels_match(graph, layer, reader):
                yield layer, reader


def _is_layer(graph: Graph, node: Node) -> bool:
    return is_call(node, (*CONVOLUTIONS, *LINEAR)) and owns(graph, node.args[1])


def _channels_match(graph: Graph, first: Node, second: Node) -> bool:
    """Whether the output channels of the one are the input channels of the other, on the same axis."""
    if is_call(first, LINEAR) != is_call(second, LINEAR):
        return False
    return len(_weight(graph, first)) == _inputs(_weight(graph, second), _groups(second)).shape[0]


def _fits(graph: Graph, first: Node, second: Node) -> bool:
    bias = first.args[2] if len(first.args) > 2 else None
    between = list(readers_behind(first, HOMOGENEOUS))
    return second in between and (bias is None or owns(graph, bias))


def _equalize(graph: Graph, first: Node, second: Node) -> float:
    """Divide the first layer's outputs and multiply the second's inputs; the greatest factor, or its inverse."""
    one, two = _weight(graph, first).double(), _weight(graph, second).double()
    ranges = one.flatten(1).abs().amax(1), _inputs(two, _groups(second)).abs().amax(1)
    alive = (ranges[0] > 0) & (ranges[1] > 0)
    factor = torch.where(alive, (ranges[0] / ranges[1].clamp_min(1e-30)).sqrt(), 1.0).clamp(1 / LARGEST, LARGEST)
    _store(graph, first.args[1], one / factor.reshape(-1, *[1] * (one.dim() - 1)))
    if len(first.args) > 2 and first.args[2] is not None:
        bias = tensor_of(graph.module, first.args[2])
        assert bias is not None
        _store(graph, first.args[2], bias.detach().double() / factor)
    _store(graph, second.args[1], two * _spread(factor, two, _groups(second)))
    return float(torch.maximum(factor, 1 / factor).max())


def _inputs(weight: Tensor, groups: int) -> Tensor:
    """What reads each input channel: (input channels, weights), of a weight (outputs, inputs / groups, ...)."""
    outputs_, inputs = weight.shape[:2]
    return weight.reshape(groups, outputs_ // groups, inputs, -1).transpose(1, 2).reshape(groups * inputs, -1)


def _spread(factor: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The factor of each input channel in the shape of a weight (outputs, inputs / groups, ...)."""
    outputs_, inputs = weight.shape[:2]
    rows = factor.reshape(groups, 1, inputs).expand(groups, outputs_ // groups, inputs).reshape(outputs_, inputs)
    return rows.reshape(outputs_, inputs, *[1] * (weight.dim() - 2))


def _groups(layer: Node) -> int:
    groups = layer.args[6] if len(layer.args) > 6 else 1
    assert isinstance(groups, int)
    return groups if is_call(layer, CONVOLUTIONS) else 1


def _weight(graph: Graph, layer: Node) -> Tensor:
    weight = tensor_of(graph.module, layer.args[1])
    assert weight is not None
    return weight.detach()


def _store(graph: Graph, node: object, value: Tensor) -> None:
    assert isinstance(node, Node)
    old = tensor_of(graph.module, node)
    assert old is not None
    set_tensor(graph.module, str(node.target), value.to(old.dtype).contiguous())
