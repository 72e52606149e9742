from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from temper.core.errors import NoEffect, TrialError
from temper.core.graph import Graph
from temper.core.technique import applied
from temper.graph.mode import set_training
from temper.techniques.fusion.batch_norm import BatchNormFusion
from temper.techniques.fusion.constants import ConstantFolding
from tests import models
from tests.models import graph_of, images, randomized, rows

CONTEXT: Any = SimpleNamespace()


def fused(graph: Graph) -> Graph:
    return applied(BatchNormFusion(), graph, CONTEXT)


def norms(graph: Graph) -> int:
    return sum("batch_norm" in str(node.target) for node in graph.module.graph.nodes)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (models.Residual(), images()),
        (models.Perceptron(), rows()),
        (models.FrozenBackbone(), images()),
        (nn.Sequential(nn.Conv2d(6, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8)), images(channels=6)),
        (nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6, affine=False)), images(channels=6)),
        (nn.Sequential(nn.Conv1d(3, 4, 3, padding="same"), nn.BatchNorm1d(4, eps=0.1)), torch.randn(3, 3, 9)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), images()),
    ],
    ids=["residual", "linear", "no_grad", "grouped", "depthwise", "padding", "two in a row"],
)
def test_outputs_stay_and_every_norm_is_gone(model: nn.Module, inputs: Tensor) -> None:
    model = randomized(model).eval()
    graph = graph_of(model, inputs)
    before = {name: each.clone() for name, each in graph.module.state_dict().items()}
    result = fused(graph)
    larger = torch.cat((inputs, inputs + 1))
    torch.testing.assert_close(result(larger)[0], model(larger), rtol=1e-4, atol=1e-5)
    assert norms(graph) > 0
    assert norms(result) == 0
    assert not [name for name in result.module.state_dict() if "running" in name]
    assert all(torch.equal(before[name], each) for name, each in graph.module.state_dict().items())


def test_closed_form() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    conv, norm = model
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    result = fused(graph_of(model, images())).module
    (bias,) = (each for name, each in result.named_parameters() if "bias" in name)
    torch.testing.assert_close(result.get_parameter("0.weight"), conv.weight * factor[:, None, None, None])
    torch.testing.assert_close(bias, (conv.bias - norm.running_mean) * factor + norm.bias)
    assert bias.requires_grad


def test_a_standardized_weight_is_stored_first() -> None:
    """The norm over the weight has no running statistics, and the one behind reads a weight that is computed."""
    model = randomized(models.WeightStandardized()).eval()
    graph = graph_of(model, images())
    with pytest.raises(TrialError, match="needs a graph and context where this holds: not computes constants"):
        fused(graph)
    result = fused(applied(ConstantFolding(), graph, CONTEXT))
    assert norms(result) == 0
    torch.testing.assert_close(result(images())[0], model(images()), rtol=1e-4, atol=1e-5)


class SharedConvolution(nn.Module):
    """One convolution with two norms behind it: neither can go into its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.one(y) + self.two(y)


class ReusedConvolution(SharedConvolution):
    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.conv(x)) + self.two(self.conv(x + 1))


class NormOverSequence(nn.Module):
    """A linear layer on (batch, 5, features) whose norm works on the 5, which is also the number of features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (SharedConvolution(), images()),
        (ReusedConvolution(), images()),
        (NormOverSequence(), torch.randn(3, 5, 8)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), images()),
    ],
)
def test_norms_that_cannot_be_folded_are_no_effect(model: nn.Module, inputs: Tensor) -> None:
    with pytest.raises(NoEffect, match="no batch norm behind"):
        BatchNormFusion().apply(graph_of(randomized(model), inputs), CONTEXT)


def test_norm_in_training_mode_is_not_folded() -> None:
    graph = graph_of(randomized(models.Residual()), images())
    set_training(graph, True)
    with pytest.raises(NoEffect):
        BatchNormFusion().apply(graph, CONTEXT)


def test_change_beyond_rounding_is_refused() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.0)))
    with torch.no_grad():
        model[1].running_var[0] = 1e-30
        model[0].weight[0] *= 1e-15
        model[0].bias[0] = 1.0
        model[1].running_mean[0] = 1.0
    with pytest.raises(TrialError, match="changed output 'output' by"):
        fused(graph_of(model, images()))


class Decides(nn.Module):
    """Outputs that are no float numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.conv(x)).mean((2, 3))
        return y > 1e6, y.argmax(1)


def test_outputs_that_are_no_float_numbers_must_be_equal() -> None:
    graph = graph_of(randomized(Decides()), images())
    after = fused(graph)
    assert all(map(torch.equal, graph(images()), after(images())))
