"""Which activations get quantizers and what becomes of the odd ones, on small models of one oddity each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.context import Context
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.technique import applied
from temper.graph.facts import float_layers, is_call, weighted_layers
from temper.graph.quantizers import is_quantizer
from temper.graph.surgery import tensor_of
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.techniques.quantization.post_training import PostTrainingQuantization, most_sensitive
from tests.models import graph_of

aten = torch.ops.aten
CPU = OnnxRuntime()


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def quantized(model: nn.Module, x: Tensor, runtime: Runtime = CPU, **knobs: object) -> Graph:
    context = Context(runtime=runtime, target=this_host(), seed=0, calibration=(x.numpy(),))
    return applied(PostTrainingQuantization(**knobs), graph_of(model.eval(), x), context)


def outputs(graph: Graph, x: Tensor, folder: Path, runtime: Runtime = CPU) -> tuple[np.ndarray, dict[str, int]]:
    """What the runtime computes, and in which precisions."""
    runtime.export(graph, folder)
    (result,) = runtime.load(folder, graph.schema, 1).run(x.numpy())
    return result, dict(runtime.executed(folder, graph.schema))


def noise(found: np.ndarray, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        exact = model(x).numpy()
    return float(((found - exact) ** 2).mean() / (exact**2).mean())


@pytest.mark.parametrize("weight", [0.0, 1e-9])
def test_bias_of_a_dead_channel_survives(weight: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 4, 3), data(32, 3, 8, 8)
    with torch.no_grad():
        model.weight[1] = weight
        model.bias[1] = 3.0
    result, _ = outputs(quantized(model, x, float_layers=0), x, tmp_path)
    assert np.abs(result[:, 1] - 3.0).max() < 0.05


def test_bias_survives_a_tiny_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 4), data(32, 8) * 1e-9
    result, _ = outputs(quantized(model, x), x, tmp_path)
    assert noise(result, model, x) < 1e-4


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(24, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        branches = [torch.relu(self.one(x)), torch.relu(self.two(x)), F.max_pool2d(x, 3, 1, 1)]
        return torch.relu(self.last(torch.cat(branches, 1))).mean((2, 3))


def grids(graph: Graph, nodes: list[object]) -> set[tuple[float, int]]:
    found = set()
    for node in filter(is_quantizer, nodes):
        scale, zero = (tensor_of(graph.module, each) for each in node.args[1:3])
        found.add((float(scale), int(zero)))
    return found


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_concatenation_and_its_parts_share_one_grid(ranges: str) -> None:
    graph = quantized(Inception(), data(16, 3, 8, 8), ranges=ranges)
    (cat,) = (node for node in graph.module.graph.nodes if is_call(node, (aten.cat.default,)))
    parts = cat.args[0]
    assert len(parts) == 3
    assert all(map(is_quantizer, parts))
    assert len(grids(graph, [*parts, *cat.users])) == 1


def test_inception_runs_in_integers(tmp_path: Path) -> None:
    model, x = Inception(), data(16, 3, 8, 8)
    result, executed = outputs(quantized(model, x), x, tmp_path)
    assert executed["int8"] >= 5, executed
    assert noise(result, model, x) < 1e-3


class Fused(nn.Module):
    """An activation behind a convolution that something other than a layer reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.relu(self.conv(x)))


def test_fused_activation_is_quantized_whoever_reads_it(tmp_path: Path) -> None:
    graph = quantized(Fused(), data(16, 3, 8, 8))
    (tanh,) = (node for node in graph.module.graph.nodes if is_call(node, (aten.tanh.default,)))
    assert is_quantizer(tanh.args[0])
    assert outputs(graph, data(16, 3, 8, 8), tmp_path)[1]["int8"] == 1


class Leaky(nn.Module):
    """Two convolutions and between them an activation that does not clamp."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.leaky_relu(self.one(x), 0.1))


@pytest.mark.parametrize(
    ("runtime", "fused"), [(CPU, False), (OpenVino(precision="f32"), True)], ids=["onnxruntime", "openvino"]
)
def test_activation_that_the_runtime_fuses_reads_floats(runtime: Runtime, fused: bool, tmp_path: Path) -> None:
    """What a convolution hands on is rounded once, behind the activation: before it, most of the range is lost."""
    model, x = Leaky(), data(16, 3, 8, 8)
    graph = quantized(model, x, runtime)
    (leaky,) = (node for node in graph.module.graph.nodes if is_call(node, (aten.leaky_relu.default,)))
    assert is_quantizer(leaky.args[0]) != fused
    assert all(map(is_quantizer, leaky.users))
    result, executed = outputs(graph, x, tmp_path, runtime)
    assert executed["int8"] >= 2
    assert noise(result, model, x) < 1e-3


class Swish(nn.Module):
    """A convolution that an activation and a pool read, and one whose activation is written out by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.one(x), self.two(x)
        return self.three(F.silu(y)) + self.three(F.max_pool2d(y, 3, 1, 1)) + self.three(z * torch.sigmoid(z))


def test_what_others_read_as_well_is_quantized_for_all(tmp_path: Path) -> None:
    """An activation is fused into a convolution only if nothing else reads that: then all read the same integers."""
    model, x, runtime = Swish(), data(16, 3, 8, 8), OpenVino(precision="f32")
    graph = quantized(model, x, runtime)
    for node in graph.module.graph.nodes:
        if is_call(node, (aten.silu.default, aten.sigmoid.default, aten.max_pool2d.default)):
            assert is_quantizer(node.args[0]), node
    assert noise(outputs(graph, x, tmp_path, runtime)[0], model, x) < 1e-3


class Filled(nn.Module):
    def __init__(self, mode: str, value: float | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)
        self.mode, self.value = mode, value

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.pad(self.one(x), (1, 1, 1, 1), self.mode, self.value))


@pytest.mark.parametrize(
    ("mode", "value"), [("constant", 9.0), ("constant", -9.0), ("constant", 0.0), ("reflect", None)]
)
def test_pads_keep_what_they_fill_in(mode: str, value: float | None, tmp_path: Path) -> None:
    model, x = Filled(mode, value), data(16, 3, 8, 8)
    result, _ = outputs(quantized(model, x), x, tmp_path)
    assert noise(result, model, x) < 1e-3


class Masked(nn.Module):
    """Attention whose mask, with minus infinity, is an activation that a sum reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        scores = y @ y.transpose(1, 2)
        mask = torch.zeros_like(scores).masked_fill(x[:, :, :1].transpose(1, 2) > 1.0, -torch.inf)
        return torch.softmax(scores + mask, -1) @ y


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_infinite_activations_get_no_quantizer(ranges: str, tmp_path: Path) -> None:
    model, x = Masked(), data(32, 5, 8).clamp(-2, 2)
    x[:, 0, 0] = 0.0
    graph = quantized(model, x, ranges=ranges)
    (add,) = (node for node in graph.module.graph.nodes if is_call(node, (aten.add.Tensor,)))
    assert not any(map(is_quantizer, add.args))
    assert noise(outputs(graph, x, tmp_path)[0], model, x) < 1e-2


class FiniteMask(nn.Module):
    """A stored position table, a finite stand-in for minus infinity that a product reads, and residual sums."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(6, 8))
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.layer_norm(self.table[:5], (8,))
        scores = torch.where(x.mean(1, keepdim=True) > 1.0, torch.finfo(torch.float32).min, x).repeat(1, 2, 1)[:, :8]
        return x + self.two(self.one(x) @ scores)


def test_masks_and_stored_tables_get_no_quantizer_and_residual_sums_stay_in_float(tmp_path: Path) -> None:
    """Without the need for stored constants: a table may be too large to be one."""
    model, x = FiniteMask().eval(), data(32, 5, 8)
    context = Context(runtime=CPU, target=this_host(), seed=0, calibration=(x.numpy(),))
    graph = PostTrainingQuantization().apply(graph_of(model, x), context)
    for node in graph.module.graph.nodes:
        if is_call(node, (aten.add.Tensor, aten.matmul.default)):
            reads = [is_quantizer(each) for each in node.args[:2]]
            assert reads == [is_call(node, (aten.matmul.default,)), False]
    assert outputs(graph, x, tmp_path)[1]["int8"] >= 1


class Ranked(nn.Module):
    """A product of activations that suffers from integers more than the layers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(x) * 1e-3 + (y**3) @ (y**3).transpose(1, 2) @ y


def test_only_weighted_layers_are_ranked() -> None:
    x = data(32, 5, 8)
    names = {layer.name for layer in weighted_layers(quantized(Ranked(), x))}
    assert most_sensitive(quantized(Ranked(), x), (x.numpy(),), 4) == names
    assert len(float_layers(quantized(Ranked(), x, float_layers=1))) == 1


class ComputedWeight(nn.Module):
    """The weight depends on the input: one that does not is stored before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(torch.tanh(self.first(x)), self.conv.weight - x.mean(), self.conv.bias)


def test_layer_of_computed_weight_stays_in_float() -> None:
    graph = quantized(ComputedWeight(), data(16, 3, 8, 8))
    layer = [node for node in graph.module.graph.nodes if is_call(node, (aten.conv2d.default,))][1]
    assert not any(map(is_quantizer, layer.args))


class Odd(nn.Module):
    """One weight in two layers, `padding="same"`, and sums that are scaled or broadcast a stored tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = (nn.Conv1d(4, 4, 3, padding="same") for _ in range(2))
        self.two.weight = self.one.weight
        self.stored = nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(torch.add(y, x, alpha=2) + self.stored) + y.mean(-1, keepdim=True)


@pytest.mark.parametrize("runtime", [OnnxRuntime(), OpenVino(precision="f32")], ids=lambda each: each.name)
def test_odd_layers_and_sums_stay_close_to_float(runtime: Runtime, tmp_path: Path) -> None:
    model, x = Odd(), data(32, 4, 16)
    graph = quantized(model, x, runtime)
    assert len(weighted_layers(graph)) == 2
    assert not float_layers(graph)
    result, _ = outputs(graph, x, tmp_path, runtime)
    assert noise(result, model, x) < 1e-3


class Shortcut(nn.Module):
    """Two convolutions, each behind a clamp or not, and their sum, read by a third that passes it on as it is."""

    def __init__(self, *, clamped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.main = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 8, 1, bias=False)
        self.clamped = clamped
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(8)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        main = self.main(x)
        return self.last(torch.relu(self.side(x) + (torch.relu(main) if self.clamped else main)))


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("runtime", [CPU, OpenVino(precision="f32")], ids=lambda each: each.name)
def test_the_sum_of_convolutions_is_executed_as_simulated(runtime: Runtime, clamped: bool, tmp_path: Path) -> None:
    """All but the few values whose rounding a last bit decides are equal, and those differ by one step."""
    model, x = Shortcut(clamped=clamped), data(32, 3, 16, 16)
    graph = quantized(model, x, runtime, float_layers=0)
    (add,) = (node for node in graph.module.graph.nodes if is_call(node, (aten.add.Tensor,)))
    assert sum(map(is_quantizer, add.args[:2])) == (1 if runtime.integers.fuses_sums else 2)
    result, executed = outputs(graph, x, tmp_path, runtime)
    assert executed["int8"] >= 4, executed
    with torch.no_grad():
        (expected,) = graph(x)
    (scale,) = (tensor_of(graph.module, node.args[0].args[1]) for node in graph.module.graph.nodes if _is_last(node))
    steps = np.abs(result - expected.numpy()) / float(scale)
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < 1e-3


def _is_last(node: object) -> bool:
    return is_call(node, (aten.conv2d.default,)) and not any(each.op != "output" for each in node.users)
