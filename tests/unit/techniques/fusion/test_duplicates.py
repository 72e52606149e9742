from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from temper.core.errors import NoEffect
from temper.core.technique import applied
from temper.techniques.fusion.duplicates import DuplicateRemoval
from tests import models
from tests.models import graph_of, randomized, rows

CONTEXT: Any = SimpleNamespace()


class Twice(nn.Module):
    """Two layers of equal weights and other biases on values that are computed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight.data.copy_(self.one.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(torch.tanh(2 * x)) + self.two(torch.tanh(2 * x))


class ChangedTwins(nn.Module):
    """Equal at first, until one is changed in place."""

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.tanh(x), torch.tanh(x)
        one.add_(1)
        return one * two


class Random(nn.Module):
    """Equal calls of what never gives the same twice, and numbers that only compare as equal."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, x, alpha=1) - torch.add(x, x, alpha=2)


def test_values_and_matrices_are_kept_once() -> None:
    model = Twice().eval()
    graph = graph_of(model, rows())
    result = applied(DuplicateRemoval(), graph, CONTEXT)
    targets = [str(node.target) for node in result.module.graph.nodes if node.op == "call_function"]
    assert [targets.count(f"aten.{each}") for each in ("mul.Tensor", "tanh.default", "linear.default")] == [1, 1, 2]
    assert sum(each.dim() == 2 for each in result.module.parameters()) == 1
    larger = torch.cat((rows(), rows() + 1))
    torch.testing.assert_close(result(larger)[0], model(larger))


@pytest.mark.parametrize("model", [ChangedTwins(), Random(), randomized(models.Perceptron())])
def test_what_only_looks_equal_stays(model: nn.Module) -> None:
    with pytest.raises(NoEffect, match="computed or stored twice"):
        DuplicateRemoval().apply(graph_of(model, rows()), CONTEXT)
