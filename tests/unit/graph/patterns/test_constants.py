import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.graph.aliases import changed_in_place
from temper.graph.patterns.constants import GROWTH_BYTES, foldable_constants
from tests import models
from tests.models import graph_of, images, randomized, rows


class Positions(nn.Module):
    """Adds something that depends on no input, `count` numbers of it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.sin(torch.arange(self.count, dtype=torch.float32) * self.scale)
        return x + steps.sum() + steps[:8]


class ChangedLater(nn.Module):
    """A buffer of zeros, made at every call, into which the input is added."""

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(8)
        view = total[:8]
        view.add_(x.sum(0))
        return x + total


class Shared(nn.Module):
    """A large table that is read as it is and transposed: storing the transposed one would double it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, GROWTH_BYTES // 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x @ self.table, torch.tanh(self.table))


def names(model: nn.Module, inputs: Tensor) -> list[str]:
    graph = graph_of(model, inputs)
    return [node.name for node in foldable_constants(graph)]


def test_the_last_nodes_that_no_input_reaches_are_found() -> None:
    assert names(Positions(16), rows()) == ["sum_1", "slice_1"]
    assert names(randomized(models.Perceptron()), rows()) == []
    assert names(randomized(models.WeightStandardized()), images()) == ["reshape_1"]


def test_results_much_larger_than_their_sources_are_left_out() -> None:
    large = GROWTH_BYTES // 4 + 1
    assert "slice_1" in names(Positions(large), rows())
    assert names(Shared(), rows()) == []


def test_what_is_changed_in_place_is_no_constant() -> None:
    graph = graph_of(ChangedLater(), rows())
    changed = {node.name for node in changed_in_place(graph.module)}
    assert {"zeros", "slice_1", "add_"} <= changed
    assert foldable_constants(graph) == []


def test_what_is_added_in_place_to_something_else_is_a_constant() -> None:
    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (2 * x).add_(torch.sin(torch.arange(8.0)))

    assert names(Adds(), rows()) == ["sin"]


@pytest.mark.parametrize("training", [True, False])
def test_randomness_is_no_constant(training: bool) -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + F.dropout(torch.ones(8), 0.5, training)

    module = torch.export.export(Random(), (rows(),)).module()
    graph = graph_of(models.Perceptron(), rows())
    object.__setattr__(graph, "module", module)
    assert "dropout" not in [node.name for node in foldable_constants(graph)]
