"""What a layer sees: second moments of its inputs, in the quantized graph and in the same graph in float."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.nn import functional as F

from temper.core.graph import Graph
from temper.graph.facts import CONVOLUTIONS, is_call
from temper.graph.quantizers import is_dynamic_quantizer, is_quantizer


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Means over all places of all examples, for each group of a layer's n inputs, each (groups, n, n), float64.

    `gram` is E[q q'] of the quantized inputs q; `cross` is E[x q'] with the float inputs x.
    """

    gram: Tensor
    cross: Tensor


class Lockstep:
    """A graph and the same graph without quantizers, run node by node over all batches at once.

    Iterating yields each node before it runs, so that weights can still be changed for it. The float graph keeps the
    weights that the graph had at the beginning.
    """

    def __init__(self, graph: Graph, inputs: Sequence[tuple[Tensor, ...]]) -> None:
        self._nodes = list(graph.module.graph.nodes)
        reference = graph.copy()
        self._twins = dict(zip(self._nodes, reference.module.graph.nodes, strict=True))
        self._quantized = _Batches(graph, inputs, quantized=True)
        self._float = _Batches(reference, inputs, quantized=False)

    def __iter__(self) -> Iterator[Node]:
        for node in self._nodes:
            yield node
            self._quantized.step(node)
            self._float.step(self._twins[node])

    def moments(self, layer: Node, kernel: Sequence[int]) -> Moments:
        """The moments of the inputs of the layer that is about to run, whose weight is (channels, n, *kernel)."""
        twin = self._twins[layer]
        gram = cross = torch.zeros((), dtype=torch.float64)
        count = 0
        for value, exact in zip(self._quantized.values(layer.args[0]), self._float.values(twin.args[0])):
            seen, wanted = patches(layer, value, kernel), patches(layer, exact, kernel)
            gram = gram + (seen.mT @ seen).double()
            cross = cross + (wanted.mT @ seen).double()
            count += seen.shape[1]
        return Moments(gram=gram / count, cross=cross / count)

    def refresh(self, quantizer: Node) -> None:
        """Compute a weight's quantizer again in the quantized graph, after the weight was changed."""
        for source in quantizer.all_input_nodes:
            self._quantized.step(source)
        self._quantized.step(quantizer)


class _Batches(Interpreter):
    """One graph in as many states as there are batches; values are dropped after their last use."""

    def __init__(self, graph: Graph, inputs: Sequence[tuple[Tensor, ...]], *, quantized: bool) -> None:
        super().__init__(graph.module)
        self.quantized = quantized
        # Graphs may write into their inputs.
        self.arguments = [iter([each.clone() for each in batch]) for batch in inputs]
        self.states: list[dict[Node, Any]] = [{} for _ in inputs]

    def step(self, node: Node) -> None:
        for state, arguments in zip(self.states, self.arguments):
            self.env, self.args_iter = state, arguments
            self.env[node] = self.run_node(node)
            for dead in self.user_to_last_uses.get(node, ()):
                self.env.pop(dead, None)

    def values(self, node: object) -> Iterator[Tensor]:
        assert isinstance(node, Node)
        for state in self.states:
            value = state[node]
            assert isinstance(value, Tensor)
            yield value

    def run_node(self, n: Node) -> Any:
        if (is_quantizer(n) or is_dynamic_quantizer(n)) and not self.quantized:
            return self.env[n.all_input_nodes[0]]
        return super().run_node(n)


def patches(layer: Node, x: Tensor, kernel: Sequence[int]) -> Tensor:
    """The vectors that the layer multiplies by its weights, (groups, places, n): rows, or patches of a convolution.

    The n numbers of a patch are in the order of a weight (channels, *kernel), flattened.
    """
    if not is_call(layer, CONVOLUTIONS):
        return x.reshape(1, -1, x.shape[-1])
    rank = len(kernel)
    given = dict(zip(("stride", "padding", "dilation", "groups"), layer.args[3:])) | dict(layer.kwargs)
    stride, dilation = _each(given.get("stride", 1), rank), _each(given.get("dilation", 1), rank)
    x = F.pad(x, _pads(given.get("padding", 0), kernel, dilation))
    for axis in range(rank):
        x = x.unfold(2 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])[..., :: dilation[axis]]
    # Now (batch, channels, *places, *kernel).
    groups = given.get("groups", 1)
    assert isinstance(groups, int)
    channels = x.shape[1]
    x = x.movedim(1, 1 + rank).reshape(-1, groups, channels // groups * math.prod(kernel))
    return x.transpose(0, 1)


def _each(value: Any, rank: int) -> list[int]:
    """One number for each dimension, of what may be given once for all."""
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return numbers if len(numbers) == rank else numbers * rank


def _pads(padding: object, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """What `pad` takes for a convolution's padding: numbers, "same" or "valid"; the last dimension comes first."""
    if isinstance(padding, str):
        totals = [step * (size - 1) if padding == "same" else 0 for step, size in zip(dilation, kernel)]
        ends = [(total // 2, total - total // 2) for total in totals]
    else:
        ends = [(each, each) for each in _each(padding, len(kernel))]
    return [end for pair in reversed(ends) for end in pair]
