"""A rewriting may change outputs by rounding: by a fixed share, or by what the graph itself makes of rounded inputs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from temper.core.errors import TrialError
from temper.graph.equivalence import check_unchanged, outputs
from tests.models import graph_of, rows


class Steep(nn.Module):
    """Enlarges whatever its inputs change by; a second output flips at once."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.sin(self.gain * x)
        return y, (y > 0).long()


@pytest.mark.parametrize(
    ("gain", "change", "passes"),
    [(1.0, 5e-5, True), (1.0, 2e-4, False), (500.0, 2e-4, True), (500.0, 2e-3, False), (1e6, 9e-4, True)],
)
def test_what_counts_as_rounding(gain: float, change: float, passes: bool) -> None:
    graph = graph_of(Steep(gain), rows(3, 6))
    before = outputs(graph)
    first, second = before.outputs
    changed = replace(before, outputs=(first + change * first.abs().max(), second))
    if passes:
        check_unchanged("a rewriting", graph, changed, "nothing")
        return
    with pytest.raises(TrialError, match=r"output '.*' by 2.0e-0. of its scale, more than rounding"):
        check_unchanged("a rewriting", graph, changed, "nothing")


def test_integers_may_not_change_at_all() -> None:
    graph = graph_of(Steep(1.0), rows(3, 6))
    before = outputs(graph)
    first, second = before.outputs
    with pytest.raises(TrialError, match="more than rounding"):
        check_unchanged("a rewriting", graph, replace(before, outputs=(first, 1 - second)), "nothing")
