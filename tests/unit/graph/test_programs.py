"""Exported programs: quantizers become operators that compute the same, in lower precision only inside."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.graph import Graph
from temper.graph.capture import capture
from temper.graph.programs import exported
from temper.runtimes.torch_compiled import TorchCompiled
from temper.techniques.quantization.post_training import PostTrainingQuantization
from temper.testing.graphs import examples
from temper.testing.techniques import context_of


def quantized() -> Graph:
    example = next(each for each in examples() if each.name == "attention")
    context: Context = replace(context_of(example, TorchCompiled()))
    return PostTrainingQuantization().apply(example.graph.copy(), context)


def test_quantizers_become_operators_that_compute_the_same() -> None:
    graph = quantized()
    program = exported(graph)
    names = {str(node.target) for node in program.graph.nodes}
    assert "quantized_decomposed.quantize_per_tensor.default" in names
    assert "quantized_decomposed.dequantize_per_channel.default" in names
    assert not any("temper." in name for name in names)
    with torch.no_grad():
        for found, wanted in zip(program.module()(*graph.example), graph(*graph.example), strict=True):
            assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def test_lower_precision_stays_inside() -> None:
    graph = capture(Layer().eval(), ((torch.randn(2, 8),), {}), names=("x",))
    x = torch.randn(5, 8)
    with torch.no_grad():
        (exact,), (rounded,) = exported(graph).module()(x), exported(graph, torch.bfloat16).module()(x)
    assert rounded.dtype is torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05
