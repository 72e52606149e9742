"""Equalized channels compute the same, use like ranges, and are found wherever a scale can pass."""

import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError
from temper.core.graph import Graph
from temper.core.technique import applied
from temper.graph.facts import weighted_layers
from temper.graph.surgery import tensor_of
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.techniques.quantization.equalization import CrossLayerEqualization
from temper.techniques.quantization.post_training import PostTrainingQuantization
from tests.models import graph_of, images

CONTEXT = Context(runtime=OnnxRuntime(), target=this_host(), seed=0, calibration=(images(32).numpy(),))


class Separable(nn.Module):
    """A convolution, a depthwise one and a grouped one, with channels of very different sizes between them."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.grouped = nn.Conv2d(8, 4, 1, groups=2, bias=False)
        self.activation, self.pool = activation, nn.MaxPool2d(2)
        with torch.no_grad():
            size = torch.logspace(-2, 2, 8)
            self.first.weight *= size.reshape(-1, 1, 1, 1)
            self.first.bias *= size
            self.depthwise.weight /= size.reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.pool(self.activation(self.depthwise(self.activation(self.first(x))))))


def noise(graph: Graph, exact: Graph) -> float:
    x = images(16)
    with torch.no_grad():
        return float(((graph(x)[0] - exact(x)[0]) ** 2).mean() / (exact(x)[0] ** 2).mean())


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1)], ids=lambda each: type(each).__name__)
def test_equal_ranges_and_the_same_outputs(activation: nn.Module) -> None:
    graph = graph_of(Separable(activation).eval(), images())
    equal = applied(CrossLayerEqualization(), graph, CONTEXT)
    assert noise(equal, graph) < 1e-9
    first, depthwise, grouped = (tensor_of(equal.module, layer.args[1]).detach() for layer in weighted_layers(equal))
    ranges = [each.flatten(1).abs().amax(1) for each in (first, depthwise)]
    assert torch.allclose(*ranges, rtol=0.03)
    inputs = grouped.reshape(2, 2, 4).abs().amax(1).flatten()
    assert torch.allclose(ranges[1], inputs, rtol=0.03)
    rounded = [applied(PostTrainingQuantization(), each, CONTEXT) for each in (graph, equal)]
    assert noise(rounded[1], graph) < 0.5 * noise(rounded[0], graph)


def test_a_second_equalization_has_nothing_to_do() -> None:
    equal = applied(CrossLayerEqualization(), graph_of(Separable(nn.ReLU()).eval(), images()), CONTEXT)
    with pytest.raises(NoEffect, match="consecutive"):
        applied(CrossLayerEqualization(), equal, CONTEXT)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.SiLU()], ids=lambda each: type(each).__name__)
def test_a_scale_does_not_pass_what_is_not_homogeneous(activation: nn.Module) -> None:
    with pytest.raises(TrialError, match="separates"):
        applied(
            CrossLayerEqualization(),
            graph_of(nn.Sequential(nn.Conv2d(3, 4, 1), activation, nn.Conv2d(4, 4, 1)), images()),
            CONTEXT,
        )


def test_a_dead_channel_keeps_its_weights() -> None:
    model = Separable(nn.ReLU())
    with torch.no_grad():
        model.first.weight[2] = 0.0
    graph = graph_of(model.eval(), images())
    assert noise(applied(CrossLayerEqualization(), graph, CONTEXT), graph) < 1e-9
