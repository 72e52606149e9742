"""Weights that hop between two neighbouring integers, and how they are kept still.

Reference: Nagel et al. 2022 (arXiv 2203.11086), section 4.3 and algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from temper.core.graph import Graph
from temper.graph.learned_quantizers import LearnedQuantizer
from temper.graph.surgery import tensor_of

MOMENTUM = 0.01
"""That of the averages: of the integers, and of how often they turn around."""


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """A weight tensor and its scale, and its integers' past, each of the weight's shape.

    `integers` are those of the last step, `mean` their running average, `direction` the sign of their last change,
    `flips` the running share of steps in which that turned around, and `frozen` what is kept still.
    """

    value: Tensor
    learned: LearnedQuantizer
    integers: Tensor
    mean: Tensor
    direction: Tensor
    flips: Tensor
    frozen: Tensor


class Freezing:
    """Freezes the integers of weights that turned around in more than this share of recent steps.

    The past is kept in buffers of the module, so that a checkpoint has it; `clean` removes them.
    """

    def __init__(self, graph: Graph, weights: Sequence[LearnedQuantizer], threshold: float) -> None:
        self._threshold = threshold
        self._weights = [_followed(graph, each, str(index)) for index, each in enumerate(weights)]

    def step(self) -> None:
        """Take note of what the optimizer did, and put frozen weights back onto their integers."""
        for each in self._weights:
            scale = _along(each.value, each.learned)
            integers = _integers(each.value, each.learned)
            change = torch.sign(integers - each.integers)
            turned = (change * each.direction < 0).float()
            each.flips.lerp_(turned, MOMENTUM)
            each.direction.copy_(torch.where(change == 0, each.direction, change))
            each.mean.lerp_(integers, MOMENTUM)
            newly = (each.flips > self._threshold) & ~each.frozen
            still = torch.where(newly, torch.round(each.mean), each.integers)
            each.frozen.logical_or_(newly)
            each.integers.copy_(torch.where(each.frozen, still, integers))
            each.value.copy_(torch.where(each.frozen, each.integers * scale, each.value))


def _followed(graph: Graph, learned: LearnedQuantizer, name: str) -> _Weight:
    value = tensor_of(graph.module, learned.node.args[0])
    assert value is not None
    integers = _integers(value.detach(), learned)
    past = {
        "integers": integers,
        "mean": integers.clone(),
        "direction": torch.zeros_like(integers),
        "flips": torch.zeros_like(integers),
        "frozen": torch.zeros_like(integers, dtype=torch.bool),
    }
    for key, tensor in past.items():
        graph.module.register_buffer(f"oscillation_{name}_{key}", tensor)
    return _Weight(value=value, learned=learned, **past)


def _integers(value: Tensor, learned: LearnedQuantizer) -> Tensor:
    return torch.clamp(torch.round(value / _along(value, learned)), learned.low, learned.high)


def _along(value: Tensor, learned: LearnedQuantizer) -> Tensor:
    """The scale, one or one for each index of the quantizer's axis, shaped to go with the weight."""
    axis = learned.node.args[5]
    shape = [-1 if index == axis else 1 for index in range(value.dim())]
    return learned.scale.detach() if axis is None else learned.scale.detach().reshape(shape)
