"""What makes two runs the same: model, data, metric, goal and seed. A run is only resumed by its own task."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
from torch import nn

from temper.core.data import Parts
from temper.core.goal import Goal
from temper.core.graph import Graph
from temper.core.metric import Metric
from temper.core.schema import Array


def fingerprint(
    module: nn.Module, graph: Graph, parts: Parts, metric: Metric, loss: object, goal: Goal, seed: int
) -> dict[str, str]:
    """A digest of each ingredient, so that a refusal can name the one that changed."""
    weights = ((name, tensor.detach().cpu().float().numpy()) for name, tensor in module.state_dict().items())
    prints = {
        "model": _digest(weights),
        "graph": hashlib.sha256(graph.module.code.encode()).hexdigest()[:16],
        "metric": f"{metric.name}, {'higher' if metric.higher_is_better else 'lower'} is better",
        "goal": json.dumps(goal.to_json(), sort_keys=True),
        "seed": str(seed),
    }
    for part in ("calibration", "selection", "proof"):
        examples = getattr(parts, part)
        if examples is not None:
            targets = () if examples.targets is None else (("targets", examples.targets),)
            prints[f"{part} data"] = _digest((*((str(i), each) for i, each in enumerate(examples.stored)), *targets))
    if parts.training is not None:
        # By its name: what `str` says of an object may hold an address, which differs from run to run.
        prints["loss"] = str(loss) if loss is None or isinstance(loss, str) else _name(loss)
    if parts.marks is not None:
        prints["training data"] = _digest([("marks", parts.marks)])
    return prints


def _name(function: object) -> str:
    """What a function, or the class of an object that can be called, is called."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _digest(arrays: Iterable[tuple[str, Array]]) -> str:
    total = hashlib.sha256()
    for name, array in arrays:
        total.update(f"{name}{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]
