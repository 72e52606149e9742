"""Folding batch norms and taking them out again: outputs stay, signs turn, and what was frozen stays frozen."""

import pytest
import torch
from torch import nn

from temper.core.graph import Graph
from temper.graph.batch_norms import fold_batch_norms, unfold_batch_norms
from temper.graph.surgery import tensor_of
from tests.models import graph_of, images, randomized, rows


def net(*, affine: bool = True, bias: bool = False) -> Graph:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine), nn.ReLU(), nn.Flatten())
    model = randomized(nn.Sequential(*layers, nn.Linear(144, 5), nn.BatchNorm1d(5)))
    with torch.no_grad():
        if affine:
            model[1].weight[1] = -0.7
        model[5].weight[2] = 0.0
    return graph_of(model.eval(), images())


@pytest.mark.parametrize(("affine", "bias"), [(True, False), (True, True), (False, False), (False, True)])
def test_what_is_folded_comes_out_again(affine: bool, bias: bool) -> None:
    graph = net(affine=affine, bias=bias)
    before = graph(images())[0]
    folded = fold_batch_norms(graph)
    assert len(folded) == 2
    torch.testing.assert_close(graph(images())[0], before, rtol=1e-4, atol=1e-5)
    norms = unfold_batch_norms(graph, folded)
    assert len(norms) == 2
    for norm in norms:
        gamma = tensor_of(graph.module, norm.args[1])
        assert gamma is not None
        assert bool((gamma >= 0).all())
    torch.testing.assert_close(graph(images())[0], before, rtol=1e-4, atol=1e-5)


def test_a_layer_with_two_norms_keeps_them() -> None:
    torch.manual_seed(0)
    graph = graph_of(randomized(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))).eval(), rows())
    before = graph(rows())[0]
    assert unfold_batch_norms(graph, fold_batch_norms(graph)) == []
    torch.testing.assert_close(graph(rows())[0], before, rtol=1e-4, atol=1e-5)


def test_what_was_not_trained_is_not_trained_now() -> None:
    graph = net()
    frozen = {"0.weight", "1.weight", "1.bias"}
    for name, parameter in graph.module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    count = sum(each.requires_grad for each in graph.module.parameters())
    unfold_batch_norms(graph, fold_batch_norms(graph))
    assert sum(each.requires_grad for each in graph.module.parameters()) == count == 4
    plain = net(affine=False)
    unfold_batch_norms(plain, fold_batch_norms(plain))
    assert sum(each.requires_grad for each in plain.module.parameters()) == 5
