"""A graph goes to the device of its training, with all that its operators make anew, and comes back."""

import pytest
import torch
from torch import Tensor, nn

from temper.core.graph import Graph
from temper.training.device import on
from tests.models import graph_of, rows


class Positions(nn.Module):
    """Makes a tensor of its own in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.arange(6, device=x.device)


def devices(graph: Graph) -> set[str]:
    """Those that operators name, and where tensors lie."""
    named = {str(value) for node in graph.module.graph.nodes for value in node.kwargs.values() if _is_device(value)}
    return named | {str(each.device) for each in graph.module.state_dict().values()}


def _is_device(value: object) -> bool:
    return isinstance(value, torch.device)


def test_it_is_there_and_comes_back() -> None:
    graph = graph_of(Positions(), rows(3, 6))
    assert devices(graph) == {"cpu"}
    parameters = list(graph.module.parameters())
    there = set()

    def interrupted() -> None:
        with on(graph, "cpu:0"):
            there.update(devices(graph))
            assert not torch.backends.cudnn.allow_tf32
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "cpu:0" in there
    assert torch.backends.cudnn.allow_tf32
    assert devices(graph) == {"cpu"}
    assert all(one is other for one, other in zip(parameters, graph.module.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics processor")
def test_it_computes_the_same_there() -> None:
    graph, x = graph_of(Positions(), rows(3, 6)), rows(5, 6)
    expected = graph(x)[0]
    with on(graph, "cuda"):
        found = graph(x.to("cuda"))[0].cpu()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(graph(x)[0], expected)
