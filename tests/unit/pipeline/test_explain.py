"""Times of layers: each kernel counts once, and every kind of quantized layer has its time."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from temper.core import catalog
from temper.core.context import Context
from temper.core.explanation import Explanation, Kernel, Layer
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.technique import Technique
from temper.graph.onnx.layers import placed
from temper.graph.sensitivity import layers_of
from temper.hardware.detect import this_host
from temper.pipeline.explain import timed
from tests.models import graph_of


class Mixed(nn.Module):
    """A convolution, linear layers with and without a bias, and activations that runtimes merge into them."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3, padding=1)
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 64, bias=False)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.convolution(x)).flatten(2)
        x = x + self.second(torch.relu(self.first(x)))
        y: Tensor = self.head(x.mean(1))
        return y


TECHNIQUES = ("", "quantization.post_training", "quantization.dynamic", "quantization.weight_only")


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return graph_of(Mixed(), torch.randn(2, 2, 8, 8))


def quantized(graph: Graph, technique: str, runtime: Runtime) -> Graph:
    if not technique:
        return graph
    knobs = {"group_size": 64} if technique == "quantization.weight_only" else {}
    calibration = (torch.randn(16, 2, 8, 8).numpy(),)
    context = Context(runtime=runtime, target=this_host(), seed=0, calibration=calibration)
    return catalog.get(Technique, technique)(**knobs).apply(graph.copy(), context)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_times_of_layers_and_of_the_rest_add_up(name: str, technique: str, graph: Graph, tmp_path: Path) -> None:
    runtime = catalog.get(Runtime, name)()
    runtime.require()
    made = quantized(graph, technique, runtime)
    runtime.export(made, tmp_path)
    inputs = [(torch.randn(2, 2, 8, 8).numpy(),) for _ in range(5)]
    kernels = runtime.profile(tmp_path, made.schema, 1, inputs)
    layers = timed(placed(layers_of(made, graph, [], 2), onnx.load(tmp_path / "model.onnx")), kernels)
    assert [layer.name for layer in layers] == ["convolution", "first", "second", "head"]
    assert all(layer.seconds is not None and layer.seconds > 0 for layer in layers)
    if technique:
        assert layers[1].precision == layers[2].precision == "int8"
    others = Explanation(call_s=1.0, kernels=kernels, layers=layers).others()
    rest = sum(kernel.seconds for group in others.values() for kernel in group)
    assert sum(layer.seconds or 0.0 for layer in layers) + rest == pytest.approx(sum(each.seconds for each in kernels))


def layer(name: str, flops: int | None) -> Layer:
    return Layer(name=name, operator="linear", shape=(4, 4), node=name, flops=flops)


def kernel(seconds: float, precision: str, *covers: str) -> Kernel:
    return Kernel(name="k", operator="MatMul", precision=precision, seconds=seconds, covers=covers)


def test_a_kernel_of_several_layers_is_divided_by_their_work() -> None:
    both = kernel(4e-6, "int8", "a", "b")
    assert [each.seconds for each in timed([layer("a", 300), layer("b", 100)], [both])] == pytest.approx([3e-6, 1e-6])
    assert [each.seconds for each in timed([layer("a", None), layer("b", 100)], [both])] == pytest.approx([2e-6, 2e-6])


def test_several_kernels_of_a_layer_are_summed_and_the_slowest_gives_its_precision() -> None:
    kernels = [kernel(5e-6, "int8", "a"), kernel(1e-6, "float32", "a"), kernel(2e-6, "float32", "elsewhere")]
    found, missing = timed([layer("a", 1), layer("b", 1)], kernels)
    assert (found.seconds, found.precision) == (pytest.approx(6e-6), "int8")
    assert (missing.seconds, missing.precision) == (None, None)
