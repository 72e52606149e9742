"""The proof that a rewriting keeps: on the graph's own example its outputs change by no more than rounding."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from temper.core.errors import TrialError
from temper.core.graph import Graph

TOLERANCE, MOST = 1e-4, 1e-3
"""Greatest change of an output, relative to the largest output, that counts as rounding: in a graph that enlarges
rounding more than most, at most the second."""
ENLARGED = 8
"""How many times as much as rounding of the inputs alone a change may do, since every operator rounds. Folding batch
norms into inception_v3 and four other deep networks with random weights did 0.9 to 1.7 times as much."""


@dataclass(frozen=True, kw_only=True)
class Before:
    """What a graph computed before it was rewritten, and how much its outputs change if its inputs are rounded."""

    outputs: tuple[Tensor, ...]
    rounding: float


def outputs(graph: Graph) -> Before:
    """What the graph computes from its example, as tensors of their own."""
    found, rounded = _run(graph, graph.example), _run(graph, tuple(map(_rounded, graph.example)))
    changes = [_change(one, other) for one, other in zip(found, rounded) if one.is_floating_point()]
    return Before(outputs=found, rounding=max(filter(math.isfinite, changes), default=0.0))


def check_unchanged(rewriting: str, graph: Graph, before: Before, cause: str) -> None:
    """Raise TrialError, naming the usual cause, if an output is not what it was `before` but for rounding."""
    allowed = min(max(TOLERANCE, ENLARGED * before.rounding), MOST)
    for spec, old, new in zip(graph.schema.outputs, before.outputs, _run(graph, graph.example), strict=True):
        change = _change(old, new)
        if not change <= allowed:
            raise TrialError(
                f"{rewriting} changed output {spec.name!r} by {change:.1e} of its scale, more than rounding "
                f"({allowed:.0e}); {cause} is the usual cause"
            )


def _run(graph: Graph, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(each.clone() for each in graph(*inputs))


def _rounded(x: Tensor) -> Tensor:
    """Each number of the tensor moved by one unit in its last place, up and down in turn; integers as they are."""
    if not x.is_floating_point():
        return x
    up = torch.arange(x.numel()).reshape(x.shape) % 2 == 0
    return torch.where(up, x.nextafter(x + x.abs() + 1), x.nextafter(x - x.abs() - 1))


def _change(old: Tensor, new: Tensor) -> float:
    """The greatest change relative to the largest value; all or nothing for outputs that are no float numbers."""
    if torch.equal(old, new):
        return 0.0
    if not old.is_floating_point() or old.shape != new.shape or old.dtype != new.dtype:
        return torch.inf
    finite = torch.isfinite(old)
    if not torch.equal(old[~finite].nan_to_num(), new[~finite].nan_to_num()):
        return torch.inf
    old, new = old[finite], new[finite]
    return float((new - old).abs().max() / old.abs().max().clamp_min(1e-12)) if old.numel() else 0.0
