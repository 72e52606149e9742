import pytest
import torch
from torch import Tensor, nn

from temper.graph.facts import weighted_layers
from temper.techniques.quantization._importance import live_rows
from temper.techniques.quantization._ranges import histograms
from tests.models import graph_of


class Pooled(nn.Module):
    """The mean over the positions whose first feature is positive, after a layer changed in place."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8).requires_grad_(not frozen)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x[:, :, :1] > 0).float()
        return torch.softmax((self.relu(self.layer(x)) * mask).sum(1) / mask.sum(1).clamp_min(1.0), -1)


@pytest.mark.parametrize("frozen", [False, True])
def test_positions_that_no_output_reads_are_dead(frozen: bool) -> None:
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    graph = graph_of(Pooled(frozen=frozen).eval(), x)
    (layer,) = weighted_layers(graph)
    (live,) = live_rows(graph, [(x,)], [layer])[layer]
    assert torch.equal(live, x[:, :, 0] > 0)


def test_what_has_no_gradient_is_all_live() -> None:
    x = torch.full((2, 3, 8), -1.0)
    graph = graph_of(Pooled(frozen=False).eval(), x)
    (layer,) = weighted_layers(graph)
    assert bool(live_rows(graph, [(x,)], [layer])[layer][0].all())


def test_dead_positions_do_not_widen_ranges() -> None:
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    x[:, 2] = -100.0
    graph = graph_of(Pooled(frozen=False).eval(), x)
    (source,) = graph.module.graph.find_nodes(op="placeholder")
    seen = histograms(graph, (x.numpy(),), {source}, "minmax")[source]
    assert -10.0 < seen.low < seen.high < 10.0
