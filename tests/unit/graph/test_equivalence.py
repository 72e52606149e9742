"""A rewriting may change outputs by rounding: by a fixed share, or by what the graph's own arithmetic is off by."""

import pytest
import torch
from torch import Tensor, nn

from temper.core.errors import TrialError
from temper.graph.equivalence import check_unchanged, outputs
from tests.models import graph_of, rows


class Cancelling(nn.Module):
    """Adds a large number and takes it away again, which leaves few digits."""

    def __init__(self, large: float, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("large", torch.tensor(large))
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y = y if self.dtype is None else torch.nn.functional.linear(y.to(self.dtype), torch.eye(6, dtype=self.dtype))
        return (y + self.large) - self.large


@pytest.mark.parametrize(
    ("large", "dtype", "change", "passes"),
    [
        (0.0, None, 5e-5, True),
        (0.0, None, 2e-4, False),
        (3000.0, None, 2e-4, True),
        (3000.0, None, 2e-3, False),
        (0.0, torch.float32, 2e-4, False),
    ],
)
def test_what_counts_as_rounding(large: float, dtype: torch.dtype | None, change: float, passes: bool) -> None:
    torch.manual_seed(0)
    graph = graph_of(Cancelling(large, dtype), rows(3, 6))
    (before,) = outputs(graph)
    changed = (before + change * before.abs().max(),)
    if passes:
        check_unchanged("a rewriting", graph, changed, "nothing")
        return
    with pytest.raises(TrialError, match="more than rounding"):
        check_unchanged("a rewriting", graph, changed, "nothing")
