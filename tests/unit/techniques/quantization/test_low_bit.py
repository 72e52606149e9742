"""Dynamic and weight-only quantization: what is chosen, and how near it stays to float."""

import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.technique import Technique, applied
from temper.graph.facts import float_linears
from temper.graph.quantizers import is_dynamic_quantizer, is_quantizer
from temper.graph.surgery import tensor_of
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.runtimes.torch_eager import TorchEager
from temper.techniques.quantization.dynamic import DynamicQuantization
from temper.techniques.quantization.weight_only import WeightOnlyQuantization
from tests.models import Residual, graph_of, images, randomized, rows


class Feed(nn.Module):
    """Two wide layers and a narrow one whose rows no group divides."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(128, 192), nn.GELU(), nn.Linear(192, 20), nn.GELU(), nn.Linear(20, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def feed() -> Graph:
    torch.manual_seed(0)
    return graph_of(Feed().eval(), rows(3, 128))


def quantized(graph: Graph, technique: Technique, runtime: Runtime) -> Graph:
    return applied(technique, graph, Context(runtime=runtime, target=this_host(), seed=0))


def groups(graph: Graph) -> set[int | None]:
    return {node.args[1] for node in filter(is_dynamic_quantizer, graph.module.graph.nodes)}


def weight_scales(graph: Graph) -> list[tuple[int, ...]]:
    return [
        tuple(tensor_of(graph.module, node.args[1]).shape) for node in filter(is_quantizer, graph.module.graph.nodes)
    ]


def noise(graph: Graph, technique: Technique, runtime: Runtime) -> float:
    """Squared error of the outputs, relative to their squares."""
    x = rows(64, 128)
    with torch.no_grad():
        (exact,), (rounded,) = graph(x), quantized(graph, technique, runtime)(x)
    return float(((rounded - exact) ** 2).mean() / (exact**2).mean())


def test_the_whole_tensor_or_rows_as_the_runtime_wants(feed: Graph) -> None:
    tensor = quantized(feed, DynamicQuantization(), OnnxRuntime())
    assert groups(tensor) == {None}
    assert weight_scales(tensor) == [(192,), (20,), (4,)]
    in_rows = quantized(feed, DynamicQuantization(), OpenVino())
    assert groups(in_rows) == {64}  # what divides both 128 and 192
    assert [layer.args[1].name for layer in float_linears(in_rows)] == ["layers_4_weight"]


def test_rows_that_no_group_divides_stay_float(feed: Graph) -> None:
    graph = quantized(feed, WeightOnlyQuantization(group_size=64), OnnxRuntime())
    assert weight_scales(graph) == [(192, 2), (20, 3)]
    assert groups(graph) == {64}
    assert len(float_linears(graph)) == 1
    wide = quantized(feed, WeightOnlyQuantization(group_size=128), OnnxRuntime())
    assert weight_scales(wide) == [(192, 1)]


def test_more_bits_and_smaller_groups_are_nearer(feed: Graph) -> None:
    runtime = OnnxRuntime()
    coarse, fine, eight = (
        noise(feed, WeightOnlyQuantization(bits=bits, group_size=size), runtime)
        for bits, size in ((4, 64), (4, 32), (8, 64))
    )
    assert 0 < 10 * eight < fine < coarse < 0.05
    assert 0 < noise(feed, DynamicQuantization(), runtime) < 1e-3
    assert 0 < noise(feed, DynamicQuantization(), OpenVino()) < 1e-3


def test_four_bits_clip_where_that_errs_less() -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    largest = weight.reshape(-1, 32).abs().amax(1).reshape(16, -1) / 7
    chosen = WeightOnlyQuantization(bits=4, group_size=32)._scales(weight)
    assert bool((chosen <= largest).all())
    zero = torch.zeros_like(largest, dtype=torch.int32)
    errors = [
        float(((torch.ops.temper.fake_quantize(weight, scale, zero, -8, 7, 0) - weight) ** 2).sum())
        for scale in (chosen, largest)
    ]
    assert errors[0] < 0.95 * errors[1]


def test_float_masters_stay(feed: Graph) -> None:
    for technique in (DynamicQuantization(), WeightOnlyQuantization(group_size=64)):
        after = dict(quantized(feed, technique, OnnxRuntime()).module.named_parameters())
        for name, parameter in feed.module.named_parameters():
            assert torch.equal(after[name], parameter)


@pytest.mark.parametrize("technique", [DynamicQuantization(), WeightOnlyQuantization()], ids=str)
def test_needs(technique: Technique, feed: Graph) -> None:
    with pytest.raises(TrialError, match="is meant for a runtime that"):
        quantized(feed, technique, TorchEager())
    convolutional = graph_of(randomized(Residual()).eval(), images())
    with pytest.raises(TrialError, match="half of its parameters"):
        quantized(convolutional, technique, OnnxRuntime())
    with pytest.raises(TrialError, match="float"):
        quantized(quantized(feed, technique, OnnxRuntime()), technique, OnnxRuntime())


def test_nothing_to_do_is_said() -> None:
    narrow = graph_of(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3)).eval(), rows(3, 20))
    with pytest.raises(NoEffect, match="group_size=128"):
        quantized(narrow, WeightOnlyQuantization(), OnnxRuntime())
    with pytest.raises(NoEffect, match="multiples of 16"):
        quantized(narrow, DynamicQuantization(), OpenVino())
