"""Smoothing leaves what the model computes and helps what integers make of it, on small models with outliers."""

import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError
from temper.core.graph import Graph
from temper.core.technique import Technique, applied
from temper.graph.facts import is_call
from temper.hardware.detect import this_host
from temper.runtimes.openvino import OpenVino
from temper.techniques.quantization.post_training import PostTrainingQuantization
from temper.techniques.quantization.smoothing import ActivationSmoothing
from tests.models import graph_of

aten = torch.ops.aten
OUTLIER = 60.0


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A norm with an outlying channel before one linear layer or two, by `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.norm = nn.RMSNorm(16) if kind == "rms" else nn.LayerNorm(16)
        self.one, self.two, self.dropout = nn.Linear(16, 16), nn.Linear(16, 16), nn.Dropout(0.1)
        with torch.no_grad():
            self.norm.weight[3] = OUTLIER
            self.one.weight[5] *= OUTLIER

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.norm(x))
        if self.kind == "residual":
            return y + self.one(y)
        if self.kind == "relu":
            return self.two(torch.relu(self.one(y)))
        if self.kind == "gelu":
            return self.two(nn.functional.gelu(self.one(y)))
        return self.one(y) + self.two(y)


def context(x: Tensor) -> Context:
    return Context(runtime=OpenVino(), target=this_host(), seed=0, calibration=(x.numpy(),))


def noise(graph: Graph, exact: Graph, x: Tensor, *techniques: Technique) -> float:
    for technique in techniques:
        graph = applied(technique, graph, context(x))
    with torch.no_grad():
        return float(((graph(x)[0] - exact(x)[0]) ** 2).mean() / (exact(x)[0] ** 2).mean())


@pytest.mark.parametrize(("kind", "inserted"), [("shared", 0), ("rms", 0), ("relu", 0), ("gelu", 1), ("residual", 1)])
def test_smoothing_is_exact_and_folded_where_it_can_be(kind: str, inserted: int) -> None:
    x = data(64, 6, 16)
    graph = graph_of(Block(kind).eval(), x)
    smooth = applied(ActivationSmoothing(), graph, context(x))
    products = [sum(is_call(node, (aten.mul.Tensor,)) for node in each.module.graph.nodes) for each in (graph, smooth)]
    assert products[1] - products[0] == inserted
    assert noise(smooth, graph, x) < 1e-9
    assert noise(smooth, graph, x, PostTrainingQuantization()) < 0.7 * noise(
        graph, graph, x, PostTrainingQuantization()
    )


def test_a_second_smoothing_has_nothing_to_do() -> None:
    x = data(64, 6, 16)
    smooth = applied(ActivationSmoothing(), graph_of(Block("shared").eval(), x), context(x))
    with pytest.raises(NoEffect, match="err less"):
        applied(ActivationSmoothing(), smooth, context(x))


def test_it_needs_norms_and_comes_before_quantizers() -> None:
    x = data(64, 16)
    with pytest.raises(TrialError, match="norms"):
        applied(ActivationSmoothing(), graph_of(nn.Linear(16, 4).eval(), x), context(x))
    x = data(64, 6, 16)
    quantized = applied(PostTrainingQuantization(), graph_of(Block("shared").eval(), x), context(x))
    with pytest.raises(TrialError):
        applied(ActivationSmoothing(), quantized, context(x))
