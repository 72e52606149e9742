"""The proof that a rewriting keeps: on the graph's own example its outputs change by no more than rounding."""

import torch
from torch import Tensor

from temper.core.errors import TrialError
from temper.core.graph import Graph

TOLERANCE, MOST = 1e-4, 1e-3
"""Greatest change of an output, relative to the largest output, that counts as rounding: in a graph whose own rounding
comes to more than a fair part of the first, at most the second."""
OWN = 4
"""How many times a graph's own rounding a change may come to: two graphs round, each in many places."""


def outputs(graph: Graph) -> tuple[Tensor, ...]:
    """What the graph computes from its example, as tensors of their own."""
    with torch.no_grad():
        return tuple(each.clone() for each in graph(*graph.example))


def check_unchanged(rewriting: str, graph: Graph, before: tuple[Tensor, ...], cause: str) -> None:
    """Raise TrialError, naming the usual cause, if an output is not what it was `before` but for rounding."""
    after = outputs(graph)
    changes = [_change(old, new) for old, new in zip(before, after, strict=True)]
    allowed = TOLERANCE if max(changes) <= TOLERANCE else min(max(TOLERANCE, OWN * _rounding(graph, after)), MOST)
    for spec, change in zip(graph.schema.outputs, changes, strict=True):
        if not change <= allowed:
            raise TrialError(
                f"{rewriting} changed output {spec.name!r} by {change:.1e} of its scale, more than rounding "
                f"({allowed:.0e}); {cause} is the usual cause"
            )


def _rounding(graph: Graph, found: tuple[Tensor, ...]) -> float:
    """How much the outputs found in float32 differ from those in float64; 0 where the graph does not run in that."""
    exact = graph.copy()
    exact.module.double()
    try:
        with torch.no_grad():
            wide = exact(*(each.double() if each.is_floating_point() else each for each in graph.example))
    except RuntimeError:  # operators that name float32 meet float64 ones
        return 0.0
    return max(_change(each.to(mine.dtype), mine) for each, mine in zip(wide, found, strict=True))


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
