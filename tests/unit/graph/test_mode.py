import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.graph import Graph
from temper.graph.mode import set_training
from tests import models
from tests.models import EXAMPLE_NAMES, EXAMPLES, example_graph, graph_of, images, rows, tokens


class Region(nn.Module):
    """Dropout in an autocast region, which is a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(8, 8), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.dropout(self.linear(x))


RANDOM = [
    pytest.param(Region(), rows(), id="region"),
    pytest.param(models.randomized(models.Perceptron()), rows(), id="dropout"),
    pytest.param(models.randomized(models.Transformer()), tokens(), id="attention"),
    pytest.param(models.Recurrent(), torch.randn(3, 2, 8), id="lstm"),
    pytest.param(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout2d()), images(), id="dropout2d"),
    pytest.param(nn.Sequential(nn.Linear(8, 8), nn.AlphaDropout(inplace=True)), rows(), id="alpha-dropout"),
    pytest.param(nn.Sequential(nn.Linear(8, 8), nn.FeatureAlphaDropout()), rows(), id="feature-alpha-dropout"),
    pytest.param(nn.Sequential(nn.Linear(8, 8), nn.RReLU()), rows(), id="rrelu"),
]


def outputs_of(graph: Graph, inputs: tuple[Tensor, ...], seed: int) -> Tensor:
    torch.manual_seed(seed)
    return graph(*inputs)[0]


@pytest.mark.parametrize(("model", "inputs"), RANDOM)
def test_training_mode_draws_as_the_module_does(model: nn.Module, inputs: Tensor) -> None:
    graph = graph_of(model, inputs)
    set_training(graph, True)
    torch.manual_seed(3)
    expected = model.train()(inputs)
    torch.testing.assert_close(outputs_of(graph, (inputs,), seed=3), expected)
    assert not torch.equal(outputs_of(graph, (inputs,), seed=4), expected)


@pytest.mark.parametrize(("model", "inputs"), EXAMPLES, ids=EXAMPLE_NAMES)
def test_evaluation_after_training_is_what_it_was(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    graph = example_graph(model, inputs)
    before = graph(*inputs)
    for training in (True, True, False):
        set_training(graph, training)
    for old, new in zip(before, graph(*inputs), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, affine=True, track_running_stats=True)])
def test_statistics_move_in_training_mode_only(norm: nn.Module) -> None:
    norm = models.randomized(norm)
    graph = graph_of(norm, images())
    buffers = dict(graph.module.named_buffers())
    before = {name: each.clone() for name, each in buffers.items()}
    graph(images())
    assert all(torch.equal(before[name], each) for name, each in buffers.items())
    set_training(graph, True)
    torch.testing.assert_close(graph(images())[0], norm.train()(images()))
    for name, each in buffers.items():
        assert not torch.equal(before[name], each)
        torch.testing.assert_close(each, norm.get_buffer(name))


def test_batch_norm_without_statistics_uses_the_batch_in_both_modes() -> None:
    model = models.randomized(models.WeightStandardized()).eval()
    graph = graph_of(model, images())
    flags = [node.args[5] for node in graph.module.graph.nodes if "batch_norm" in node.name]
    assert flags == [True, False]
    torch.testing.assert_close(graph(images())[0], model(images()))


def test_copies_have_a_mode_of_their_own() -> None:
    graph = graph_of(models.randomized(models.Transformer()), tokens())
    copy = graph.copy()
    set_training(copy, True)
    assert torch.equal(outputs_of(graph, (tokens(),), 0), outputs_of(graph, (tokens(),), 1))
    assert not torch.equal(outputs_of(copy, (tokens(),), 0), outputs_of(copy, (tokens(),), 1))


def test_attention_keyword_dropout() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)

    x = torch.randn(3, 2, 6, 4)
    graph = graph_of(Attention(), x)
    set_training(graph, True)
    assert not torch.equal(outputs_of(graph, (x,), 0), outputs_of(graph, (x,), 1))
    set_training(graph, False)
    torch.testing.assert_close(graph(x)[0], F.scaled_dot_product_attention(x, x, x))
