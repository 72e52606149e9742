"""Weights that turn around often are kept on the integer where they mostly were; all others move freely."""

import torch
from torch import nn

from temper.graph.learned_quantizers import learn
from temper.graph.quantizers import FAKE_QUANTIZE
from temper.graph.surgery import add_tensor, clean, tensor_of
from temper.training.oscillation import Freezing
from tests.models import graph_of, rows


def test_only_what_oscillates_is_frozen_on_its_mean() -> None:
    """Of three weights one hops between 2 and 3, mostly 3, one drifts upward, one stays."""
    graph = graph_of(nn.Linear(3, 1, bias=False), rows(2, 3))
    module = graph.module
    (layer,) = [node for node in module.graph.nodes if node.target is torch.ops.aten.linear.default]
    scale = add_tensor(module, "scale", torch.tensor([0.5]))
    zero = add_tensor(module, "zero", torch.tensor([0], dtype=torch.int32))
    with module.graph.inserting_before(layer):
        quantizer = module.graph.call_function(FAKE_QUANTIZE, (layer.args[1], scale, zero, -8, 7, 0))
    layer.update_arg(1, quantizer)
    (learned,) = learn(graph)
    weight = tensor_of(module, learned.node.args[0])
    assert weight is not None
    with torch.no_grad():
        weight.copy_(torch.tensor([[1.5, -3.0, 1.0]]))
        freezing = Freezing(graph, [learned], 0.1)
        for step in range(60):
            weight.copy_(torch.tensor([[1.0 if step % 3 == 0 else 1.5, -3.0 + 0.1 * step, 1.0]]))
            freezing.step(1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([[1.5, -3.0 + 0.1 * 59, 1.0]]))
    with torch.no_grad():
        weight.copy_(torch.tensor([[1.0, 2.0, 1.5]]))
        freezing.step(1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([[1.5, 2.0, 1.5]]))
    with torch.no_grad():
        freezing = Freezing(graph, [learned], 0.1)
        for step in range(60):
            weight.copy_(torch.tensor([[1.0 if step % 3 == 0 else 1.5, 2.0, 1.5]]))
            freezing.step(0.0)
    assert not bool(module.get_buffer("oscillation_0_frozen").any()), "it begins at four times the threshold"
    assert "oscillation_0_mean" in dict(module.named_buffers())
    clean(module)
    assert "oscillation_0_mean" not in dict(module.named_buffers())
