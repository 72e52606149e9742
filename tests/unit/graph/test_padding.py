from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.context import Context
from temper.core.graph import Graph
from temper.core.technique import applied
from temper.graph.padding import pads_at_convolutions
from temper.graph.quantizers import is_quantizer, pads_zeros
from temper.hardware.detect import this_host
from temper.runtimes.openvino import OpenVino
from temper.techniques.quantization.post_training import PostTrainingQuantization
from tests.models import graph_of, images


class Same(nn.Module):
    """Halves images with zeros on two sides only, beside a shortcut of stride 2, as networks of TensorFlow do."""

    def __init__(self, sizes: tuple[int, ...] = (0, 1, 0, 1), fill: float = 0.0, padding: int | str = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.halving = nn.Conv2d(8 + sum(sizes[4:]), 12, 3, stride=1 if padding == "same" else 2, padding=padding)
        self.shortcut, self.sizes, self.fill = nn.Conv2d(8, 12, 1, stride=2), sizes, fill

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.first(x))
        return F.relu(self.halving(F.pad(x, self.sizes, value=self.fill))).mean((2, 3)), self.shortcut(x)


def quantized(model: nn.Module) -> Graph:
    context = Context(runtime=OpenVino(), target=this_host(), seed=0, calibration=(images(32).numpy(),))
    return applied(PostTrainingQuantization(), graph_of(model.eval(), images()), context)


def padded(graph: Graph) -> list[bool]:
    """For each pad of zeros, whether what it pads is quantized and its result is not."""
    pads = [node for node in graph.module.graph.nodes if pads_zeros(node)]
    return [is_quantizer(node.args[0]) and not any(map(is_quantizer, node.users)) for node in pads]


def test_zeros_go_into_the_convolution_behind_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph, runtime, x = quantized(Same()), OpenVino(precision="f32"), images(5)
    assert padded(graph) == [False]
    assert padded(pads_at_convolutions(graph)) == [True]
    with torch.no_grad():
        expected = graph(x)
        assert all(map(torch.equal, pads_at_convolutions(graph)(x), expected))
    runtime.export(graph, tmp_path)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert "Pad" not in [node.op_type for node in nodes]
    # With the pad between them, the shortcut found no integers to read.
    assert runtime.executed(tmp_path, graph.schema).get("int8", 0) >= 3
    for found, wanted in zip(runtime.load(tmp_path, graph.schema, 1).run(x.numpy()), expected, strict=True):
        assert abs(found - wanted.numpy()).max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize(
    "model",
    [Same(fill=1.0), Same(sizes=(0, 1, 0, 1, 2, 2)), Same(sizes=(0, -1, 0, -1)), Same(padding="same")],
    ids=["ones", "channels", "cut", "by name"],
)
def test_other_pads_stay(model: nn.Module) -> None:
    graph = quantized(model)
    assert padded(pads_at_convolutions(graph)) == padded(graph)
