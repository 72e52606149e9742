"""ExecuTorch's own events, led back to the layers of the graph."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from temper.core.explanation import Explanation
from temper.graph.sensitivity import layers_of
from temper.pipeline.explain import timed
from temper.runtimes.executorch import ExecuTorch
from tests.models import graph_of


class Wide(nn.Module):
    """Layers that XNNPACK takes over, the second of them twice, around an operator that it leaves to others."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(9, 16), nn.Linear(16, 512)
        self.second, self.head = nn.Linear(512, 512), nn.Linear(512, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.relu(self.first(self.table(tokens)))
        x = torch.relu(self.second(torch.relu(self.second(x))))
        y: Tensor = self.head(x)
        return y


def test_every_layer_has_the_time_of_its_own_operator(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    tokens = torch.randint(0, 9, (32, 16))
    graph, runtime = graph_of(Wide(), tokens), ExecuTorch()
    runtime.export(graph, tmp_path)
    kernels = runtime.profile(tmp_path, graph.schema, 1, [(tokens.numpy(),)] * 3)
    covered = [name for kernel in kernels for name in kernel.covers]
    layers = timed(layers_of(graph, graph, [], 32), kernels)
    assert covered == [layer.node for layer in layers]
    assert [layer.name for layer in layers] == ["first", "second", "second", "head"]
    # A product of 512 x 512 x 512 takes over a microsecond, which is the tick of the clock.
    assert all((layer.seconds or 0.0) > 0 for layer in layers[1:3])
    others = Explanation(call_s=1.0, kernels=kernels, layers=layers).others()
    assert {"aten::embedding", "XnnpackBackend"} <= set(others)
    rest = sum(kernel.seconds for group in others.values() for kernel in group)
    assert sum(layer.seconds or 0.0 for layer in layers) + rest == pytest.approx(sum(each.seconds for each in kernels))
