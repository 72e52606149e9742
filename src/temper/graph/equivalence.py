"""The proof that a rewriting keeps: on the graph's own example its outputs change by no more than rounding."""

import torch
from torch import Tensor

from temper.core.errors import TrialError
from temper.core.graph import Graph

TOLERANCE = 1e-4
"""Greatest change of an output, relative to the largest output, that counts as rounding."""


def outputs(graph: Graph) -> tuple[Tensor, ...]:
    """What the graph computes from its example, as tensors of their own."""
    with torch.no_grad():
        return tuple(each.clone() for each in graph(*graph.example))


def check_unchanged(rewriting: str, graph: Graph, before: tuple[Tensor, ...], cause: str) -> None:
    """Raise TrialError, naming the usual cause, if an output is not what it was `before` but for rounding."""
    for spec, old, new in zip(graph.schema.outputs, before, outputs(graph), strict=True):
        change = _change(old, new)
        if not change <= TOLERANCE:
            raise TrialError(
                f"{rewriting} changed output {spec.name!r} by {change:.1e} of its scale, more than rounding "
                f"({TOLERANCE:.0e}); {cause} is the usual cause"
            )


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
