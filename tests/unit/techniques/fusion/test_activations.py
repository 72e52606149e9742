import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.errors import NoEffect, TrialError
from temper.core.technique import applied
from temper.techniques.fusion.activations import ActivationFusion
from tests.models import graph_of, rows

CONTEXT: Any = SimpleNamespace()


class Applies(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.function(self.layer(x)))


def operators(function: Callable[[Tensor], Tensor]) -> list[str]:
    """What the fused graph calls between the two layers, after a check of its outputs on other inputs."""
    model = Applies(function).eval()
    result = applied(ActivationFusion(), graph_of(model, rows()), CONTEXT)
    larger = 4 * torch.cat((rows(), rows() + 1))
    torch.testing.assert_close(result(larger)[0], model(larger), rtol=1e-4, atol=1e-5)
    targets = [str(node.target) for node in result.module.graph.nodes if node.op == "call_function"]
    return [each.split(".")[1] for each in targets[1:-1]]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))), "gelu"),
        (lambda x: x * (torch.tanh((x * x * x * 0.044715 + x) * 0.7978845608028654) + 1) * 0.5, "gelu"),
        (lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: x / (1 + torch.exp(-x)), "silu"),
        (lambda x: x * F.relu6(x + 3) / 6, "hardswish"),
        (lambda x: x * F.relu6(x + 3, inplace=True).div_(6), "hardswish"),
        (lambda x: (x + 3).clamp(0, 6) / 6, "hardsigmoid"),
        (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
        (lambda x: torch.log(1 + torch.exp(x)), "softplus"),
        (lambda x: x.clamp(min=0), "relu"),
        (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid"),
    ],
)
def test_every_spelling_becomes_one_operator(function: Callable[[Tensor], Tensor], expected: str) -> None:
    assert operators(function) == [expected]


def test_the_widest_function_wins() -> None:
    assert operators(lambda x: F.relu(x) + x * torch.sigmoid(x)) == ["relu", "silu", "add"]


def test_gelu_keeps_its_kind() -> None:
    """The approximation by tanh is 5e-4 away from GELU: they must not be confused."""
    by_tanh = Applies(lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))).eval()
    result = applied(ActivationFusion(), graph_of(by_tanh, rows()), CONTEXT)
    assert [node.kwargs for node in result.module.graph.nodes if "gelu" in str(node.target)] == [
        {"approximate": "tanh"}
    ]


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        lambda x: x + torch.relu(x),
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x * torch.sigmoid(x[:, :1]),
        lambda x: x.mul_(torch.sigmoid(x)) + x,
    ],
    ids=["known", "another function", "quick GELU", "two tensors", "in place"],
)
def test_what_is_no_activation_stays(function: Callable[[Tensor], Tensor]) -> None:
    graph = graph_of(Applies(function), rows())
    with pytest.raises(NoEffect, match="no activation that is written out"):
        ActivationFusion().apply(graph.copy(), CONTEXT)
    with pytest.raises(TrialError, match="writes activations out by hand"):
        applied(ActivationFusion(), graph, CONTEXT)
