"""Weights that hop between two neighbouring integers, and how they are kept still.

Reference: Nagel et al. 2022 (arXiv 2203.11086), section 4.3 and algorithm 1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from temper.core.graph import Graph
from temper.graph.learned_quantizers import LearnedQuantizer, along
from temper.graph.surgery import tensor_of

MOMENTUM = 0.01
"""That of the averages: of the integers, and of how often they turn around."""
EASED = 4
"""How many times the threshold is at the beginning what it is at the end; Nagel et al. come down from 0.04 to 0.01."""
PAST = ("integers", "mean", "direction", "flips", "frozen")
"""The integers of the last step, their running average, the sign of their last change, the running share of steps in
which that turned around, and which weights are kept still."""


class Freezing:
    """Freezes the integers of weights that turned around in more than a share of recent steps.

    The share begins at four times the threshold and falls to it as a cosine: what hops early may still have to move.
    The past of each weight's integers is kept in buffers of the module, of the weight's shape, so that a checkpoint has
    it; `clean` removes them.
    """

    def __init__(self, graph: Graph, weights: Sequence[LearnedQuantizer], threshold: float) -> None:
        self._module, self._threshold = graph.module, threshold
        self._weights = [(each, f"oscillation_{index}") for index, each in enumerate(weights)]
        for each, name in self._weights:
            _follow(graph.module, each, name)

    def step(self, share: float) -> None:
        """Take note of what the optimizer did, and put frozen weights back onto their integers.

        `share` of the training is over.
        """
        threshold = self._threshold * (1 + (EASED - 1) * 0.5 * (1 + math.cos(math.pi * share)))
        for learned, name in self._weights:
            # Asked for in each step: whoever moves the module to another device puts other tensors in their place.
            before, mean, direction, flips, frozen = (self._module.get_buffer(f"{name}_{key}") for key in PAST)
            value = _value(self._module, learned)
            integers = _integers(value, learned)
            change = torch.sign(integers - before)
            flips.lerp_((change * direction < 0).float(), MOMENTUM)
            direction.copy_(torch.where(change == 0, direction, change))
            mean.lerp_(integers, MOMENTUM)
            newly = (flips > threshold) & ~frozen
            still = torch.where(newly, torch.round(mean), before)
            frozen.logical_or_(newly)
            before.copy_(torch.where(frozen, still, integers))
            value.copy_(torch.where(frozen, before * _step(value, learned), value))


def _follow(module: GraphModule, learned: LearnedQuantizer, name: str) -> None:
    integers = _integers(_value(module, learned).detach(), learned)
    past = {
        "integers": integers,
        "mean": integers.clone(),
        "direction": torch.zeros_like(integers),
        "flips": torch.zeros_like(integers),
        "frozen": torch.zeros_like(integers, dtype=torch.bool),
    }
    for key, tensor in past.items():
        module.register_buffer(f"{name}_{key}", tensor)


def _value(module: GraphModule, learned: LearnedQuantizer) -> Tensor:
    value = tensor_of(module, learned.node.args[0])
    assert value is not None
    return value


def _integers(value: Tensor, learned: LearnedQuantizer) -> Tensor:
    return torch.clamp(torch.round(value / _step(value, learned)), learned.low, learned.high)


def _step(value: Tensor, learned: LearnedQuantizer) -> Tensor:
    """The scale, shaped to go with the weight."""
    axis = learned.node.args[5]
    assert axis is None or isinstance(axis, int)
    return along(learned.scale, value, axis)
