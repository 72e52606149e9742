from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.technique import Technique, applied
from temper.graph.capture import capture
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.techniques.quantization.dynamic import DynamicQuantization
from temper.techniques.quantization.post_training import PostTrainingQuantization
from temper.techniques.quantization.weight_only import WeightOnlyQuantization


class Named(nn.Module):
    """Outputs named like the input, like values inside and like one another, and a parameter like the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.x = nn.Linear(8, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        y = self.layer(x) * self.x
        z = torch.sigmoid(y)
        return {"x": y, "linear": z, "sigmoid": torch.tanh(z), "a": {"b": y + 1}, "a_b": z - 1}


@pytest.mark.parametrize("runtime", [OnnxRuntime(), OpenVino(precision="f32")], ids=lambda each: each.name)
def test_outputs_may_be_named_like_anything(runtime: OnnxRuntime | OpenVino, tmp_path: Path) -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    graph = capture(Named().eval(), ((x,), {}), names=["x"])
    assert [spec.name for spec in graph.schema.outputs] == ["x", "linear", "sigmoid", "a_b", "a_b"]
    runtime.export(graph, tmp_path)
    found = onnx.load(tmp_path / "model.onnx").graph
    assert [each.name for each in found.input] == ["x"]
    assert [each.name for each in found.output] == ["x_2", "linear", "sigmoid", "a_b", "a_b_1"]
    results = runtime.load(tmp_path, graph.schema, 1).run(x.numpy())
    for result, expected in zip(results, graph(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(result), expected)


class Repeated(nn.Module):
    """One layer, four times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = torch.tanh(self.layer(x))
        return x


@pytest.mark.parametrize(
    "technique", [PostTrainingQuantization(), DynamicQuantization(), WeightOnlyQuantization(group_size=32)]
)
def test_a_weight_that_is_read_many_times_is_stored_once(technique: Technique, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64)
    graph = capture(Repeated().eval(), ((x,), {}), names=["x"])
    context = Context(runtime=OnnxRuntime(), target=this_host(), seed=0, calibration=(x.numpy(),))
    OnnxRuntime().export(applied(technique, graph, context), tmp_path)
    held = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert [sum(len(each.raw_data) == 64 * 64 for each in held)] == [1]
    assert sum(len(each.raw_data) for each in held) < 2 * 64 * 64


def test_strides_cost_no_operators(tmp_path: Path) -> None:
    """A network whose tensors lie channels last is the same file as one whose tensors do not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 3, 8, 8)
    for name, order in (("plain", torch.contiguous_format), ("last", torch.channels_last)):
        net.to(memory_format=order)  # type: ignore[call-overload]
        (tmp_path / name).mkdir()
        OnnxRuntime().export(capture(net, ((x.contiguous(memory_format=order),), {}), names=["x"]), tmp_path / name)
    plain, last = ((tmp_path / name / "model.onnx").read_bytes() for name in ("plain", "last"))
    assert last == plain
