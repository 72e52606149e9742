"""How a graph is trained: what of it, by which optimizer, and at which rate."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import nn

from temper.core.graph import Graph

MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a graph is trained: for so many epochs, at a rate that warms up linearly and falls to zero as a cosine.

    If time is short the schedule is run through faster. `clip_norm` bounds the norm of the gradients of each group, 0
    does not. With `autocast` products are computed in bfloat16. Training ends after `patience` epochs in a row without
    a better loss on the selection part; with 0 it does not look.
    """

    epochs: int
    batch: int
    learning_rate: float
    optimizer: Literal["sgd", "adamw"]
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip_norm: float = 0.0
    autocast: bool = False
    channels_last: bool = True
    patience: int = 0

    def rate_at(self, share: float) -> float:
        """The learning rate where this share of the training is over, as a share of the largest."""
        warm = min(1.0, share / self.warmup) if self.warmup else 1.0
        return warm * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are trained alike: their rate as a multiple of the plan's, and whether they decay."""

    parameters: Sequence[nn.Parameter]
    rate: float = 1.0
    decays: bool = False


def identity(graph: Graph, groups: Sequence[Group], plan: Plan, seed: int, steps: int) -> str:
    """What tells trainings apart: graph and tensors, what is trained and how, the seed, the steps of an epoch."""
    shapes = [[group.rate, group.decays, *(list(each.shape) for each in group.parameters)] for group in groups]
    told = json.dumps([str(graph.module.graph), list(graph.module.state_dict()), shapes, asdict(plan), seed, steps])
    return hashlib.sha256(told.encode()).hexdigest()


def optimizer(groups: Sequence[Group], plan: Plan) -> torch.optim.Optimizer:
    """What the plan names, for these groups."""
    parameters = [
        {
            "params": list(group.parameters),
            "lr": plan.learning_rate * group.rate,
            "weight_decay": plan.weight_decay if group.decays else 0.0,
        }
        for group in groups
    ]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=plan.learning_rate, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(parameters, lr=plan.learning_rate)
