"""What ONNX Runtime makes of a graph, beyond what the conformance suite asks of every runtime."""

from pathlib import Path

import torch
from torch import Tensor, nn

from temper.runtimes.onnxruntime import OnnxRuntime
from tests.models import graph_of


class Residual(nn.Module):
    """A sum that a layer norm reads, as in every transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear(x))


def test_sums_and_layer_norms_stay_apart(tmp_path: Path) -> None:
    """Their fused kernel is slower; an option that no longer names the rewriting would be ignored in silence."""
    graph = graph_of(Residual(), torch.randn(2, 4, 8))
    runtime = OnnxRuntime()
    runtime.export(graph, tmp_path)
    inputs = [(torch.randn(2, 4, 8).numpy(),)]
    operators = {kernel.operator for kernel in runtime.profile(tmp_path, graph.schema, 1, inputs)}
    assert "LayerNormalization" in operators
    assert "SkipLayerNormalization" not in operators
