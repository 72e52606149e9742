"""Products that are linear layers in all but name."""

import torch
from torch import Tensor, nn

from temper.graph.facts import is_call, weighted_layers
from tests.models import graph_of

aten = torch.ops.aten


class Products(nn.Module):
    """A product with a bias, one without, one with a matrix that is read twice, and some that are no layers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.one, self.two, self.twice, self.other, self.broadcast = (
            nn.Parameter(torch.randn(6, 6, generator=generator)) for _ in range(5)
        )
        self.bias = nn.Parameter(torch.randn(6, generator=generator), requires_grad=False)
        self.two.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x, self.one)
        y = (y[:, None] @ self.two)[:, 0]
        y = torch.relu(y @ self.twice) @ self.twice
        y = torch.addmm(self.bias[:1], y, self.broadcast)
        return y @ y.T @ x + y @ (self.other * self.other.sum()) + y @ self.other


def test_they_become_linear_layers_that_compute_the_same() -> None:
    module, x = Products(), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    graph = graph_of(module, x)
    layers = weighted_layers(graph)
    assert [layer.args[1].target for layer in layers] == ["one_1", "two_1", "twice_1", "twice_1"]
    assert [len(layer.args) > 2 and layer.args[2] is not None for layer in layers] == [True, False, False, False]
    assert torch.allclose(graph(x)[0], module(x), rtol=1e-4, atol=1e-4)
    parameters = dict(graph.module.named_parameters())
    assert not {"one", "two", "twice"} & set(parameters)
    assert "other" in parameters, "a matrix that something else reads stays as it is"
    assert "broadcast" in parameters, "a layer has a bias for each output"
    assert parameters["one_1"].requires_grad
    assert not parameters["two_1"].requires_grad
    assert sum(is_call(node, (aten.matmul.default, aten.mm.default)) for node in graph.module.graph.nodes) == 4
