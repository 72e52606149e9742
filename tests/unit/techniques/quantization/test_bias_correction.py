"""What rounding shifts on average is taken off: layer by layer, for biases that are there and those that are not."""

import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.technique import applied
from temper.graph.facts import weighted_layers
from temper.graph.quantizers import is_quantizer
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.techniques.quantization.bias_correction import BiasCorrection
from temper.techniques.quantization.post_training import PostTrainingQuantization
from tests.models import graph_of


class Shifted(nn.Module):
    """Coarse weights, all rounded the same way, on inputs with a mean: every output is shifted."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 6, 3, bias=bias), nn.Linear(6, 4, bias=bias)
        with torch.no_grad():
            for layer in (self.conv, self.linear):
                layer.weight.fill_(0.0142)
                layer.weight.view(len(layer.weight), -1)[:, 0] = 1.27

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


def images(batch: int) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))


def context(runtime: Runtime) -> Context:
    return Context(runtime=runtime, target=this_host(), seed=0, calibration=(images(64).numpy(),))


def shift(graph: Graph, exact: Graph) -> float:
    x = images(64)
    with torch.no_grad():
        return float((graph(x)[0] - exact(x)[0]).mean(0).abs().max())


@pytest.mark.parametrize("runtime", [OnnxRuntime(), OpenVino()], ids=lambda each: each.name)
@pytest.mark.parametrize("bias", [True, False])
def test_mean_outputs_are_those_of_the_float_model(runtime: Runtime, bias: bool) -> None:
    graph = graph_of(Shifted(bias=bias).eval(), images(3))
    rounded = applied(PostTrainingQuantization(placement="products"), graph, context(runtime))
    corrected = applied(BiasCorrection(), rounded, context(runtime))
    assert shift(corrected, graph) < 0.02 * shift(rounded, graph)
    assert runtime.integers is not None
    for layer in weighted_layers(corrected):
        assert is_quantizer(layer.args[2]) == runtime.integers.integer_bias


def test_a_second_correction_has_nothing_to_do() -> None:
    graph = graph_of(Shifted(bias=True).eval(), images(3))
    corrected = graph
    for technique in (PostTrainingQuantization(), BiasCorrection()):
        corrected = applied(technique, corrected, context(OnnxRuntime()))
    with pytest.raises(NoEffect, match="already"):
        applied(BiasCorrection(), corrected, context(OnnxRuntime()))


def test_without_quantizers_there_is_nothing_to_correct() -> None:
    with pytest.raises(TrialError, match="quantizers"):
        applied(BiasCorrection(), graph_of(Shifted(bias=True).eval(), images(3)), context(OnnxRuntime()))
