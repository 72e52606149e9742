from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.schema import Array
from temper.core.technique import applied
from temper.graph.cost import record_values
from temper.graph.facts import CONVOLUTIONS, LINEAR, float_layers, is_call, weighted_layers
from temper.graph.quantizers import MOVEMENTS, is_quantizer, packed
from temper.graph.surgery import tensor_of
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.runtimes.torch_eager import TorchEager
from temper.techniques.fusion.batch_norm import BatchNormFusion
from temper.techniques.fusion.constants import ConstantFolding
from temper.techniques.quantization.post_training import PostTrainingQuantization, most_sensitive
from tests.models import Residual, Transformer, graph_of, images, randomized, tokens


def context(runtime: Runtime, calibration: Array | None, *features: str) -> Context:
    """For a processor with these features alone, whatever this host has."""
    arrays = None if calibration is None else (calibration,)
    return Context(runtime=runtime, target=replace(this_host(), features=features), seed=0, calibration=arrays)


@dataclass
class Case:
    graph: Graph
    calibration: Array

    def quantized(self, runtime: Runtime, *features: str, **knobs: object) -> Graph:
        return applied(PostTrainingQuantization(**knobs), self.graph, context(runtime, self.calibration, *features))


@pytest.fixture(scope="module")
def residual() -> Case:
    graph = graph_of(randomized(Residual()).eval(), images())
    calibration = images(64).numpy()
    return Case(applied(BatchNormFusion(), graph, context(OnnxRuntime(), calibration)), calibration)


@pytest.fixture(scope="module")
def transformer() -> Case:
    graph, calibration = graph_of(randomized(Transformer()).eval(), tokens()), tokens(64).numpy()
    return Case(applied(ConstantFolding(), graph, context(OnnxRuntime(), calibration)), calibration)


def quantizers_before(graph: Graph, targets: tuple[object, ...]) -> list[tuple[int, int, int]]:
    """Lowest integer, highest integer and zero point of each activation quantizer that such an operator reads."""
    found = []
    for node in graph.module.graph.nodes:
        if is_call(node, targets) and is_quantizer(node.args[0]):
            _, _, zero, low, high, _ = node.args[0].args
            found.append((low, high, int(tensor_of(graph.module, zero))))
    return found


def test_every_layer_is_quantized_per_output_channel(residual: Case) -> None:
    graph = residual.quantized(OnnxRuntime())
    layers = weighted_layers(graph)
    assert len(layers) == 5
    assert not float_layers(graph)
    for layer in layers:
        weight, scale, *_ = layer.args[1].args
        assert tensor_of(graph.module, scale).shape == (len(tensor_of(graph.module, weight)),)


def test_eight_bits_stay_close_to_float(residual: Case) -> None:
    x = images(16)
    with torch.no_grad():
        (exact,), (rounded,) = residual.graph(x), residual.quantized(OnnxRuntime())(x)
    noise = float(((rounded - exact) ** 2).mean() / (exact**2).mean())
    assert 0 < noise < 1e-2


def test_signedness_follows_the_runtime(residual: Case, transformer: Case) -> None:
    def types(graph: Graph, targets: tuple[object, ...]) -> set[tuple[int, int]]:
        return {(low, high) for low, high, _ in quantizers_before(graph, targets)}

    for case in (residual, transformer):
        assert types(case.quantized(OnnxRuntime()), (*CONVOLUTIONS, *LINEAR)) == {(0, 255)}
    assert types(residual.quantized(OpenVino()), CONVOLUTIONS) == {(0, 255)}
    assert types(residual.quantized(OnnxRuntime(), "amx_int8"), CONVOLUTIONS) == {(0, 255)}
    matrix_units = quantizers_before(residual.quantized(OpenVino(), "amx_int8"), CONVOLUTIONS)
    assert matrix_units[0] == (-128, 127, 0)
    assert {each[:2] for each in matrix_units[1:]} == {(0, 255)}
    assert set(quantizers_before(transformer.quantized(OpenVino()), LINEAR)) == {(-128, 127, 0)}


def test_zero_is_exact(residual: Case) -> None:
    """Padding and ReLU produce zeros, which must survive quantization exactly."""
    graph = residual.quantized(OnnxRuntime())
    for node in filter(is_quantizer, graph.module.graph.nodes):
        scale, zero, low, high = (*(tensor_of(graph.module, each) for each in node.args[1:3]), *node.args[3:5])
        assert bool(((zero >= low) & (zero <= high)).all())
        assert bool((scale > 0).all())


def test_sums_read_integers_only_when_placed_everywhere(residual: Case) -> None:
    def sums(graph: Graph) -> list[bool]:
        adds = [node for node in graph.module.graph.nodes if "add" in str(node.target)]
        return [all(map(is_quantizer, node.args[:2])) for node in adds]

    assert sums(residual.quantized(OnnxRuntime(), placement="everywhere")) == [True]
    assert sums(residual.quantized(OnnxRuntime(), placement="products")) == [False]


class OneBadLayer(nn.Module):
    """Three linear layers, of which the second alone suffers: a few of its weights dwarf the others in each row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        with torch.no_grad():
            self.layers[1].weight[:, 0] = 40.0

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
            x = torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)
        return x


def test_the_layer_that_hurts_most_stays_in_float() -> None:
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
    case = Case(graph_of(OneBadLayer(), x), x.numpy())
    every = case.quantized(OnnxRuntime())
    (worst,) = most_sensitive(every, (case.calibration,), 1)
    layers = weighted_layers(every)
    assert worst == layers[1].name
    kept = case.quantized(OnnxRuntime(), float_layers=1)
    assert [node.name for node in float_layers(kept)] == [worst]
    with torch.no_grad():
        exact, all_rounded, one_kept = case.graph(x)[0], every(x)[0], kept(x)[0]
    assert float(((one_kept - exact) ** 2).mean()) < 0.2 * float(((all_rounded - exact) ** 2).mean())


def test_outliers_are_clipped_by_percentile_and_by_error(residual: Case) -> None:
    spoiled = residual.calibration.copy()
    spoiled[0, 0, 0, 0] = 1000.0
    case = Case(residual.graph, spoiled)
    x = images(16)
    with torch.no_grad():
        exact = residual.graph(x)[0]
        errors = {
            ranges: float(((case.quantized(OnnxRuntime(), ranges=ranges, percentile=99.9)(x)[0] - exact) ** 2).mean())
            for ranges in ("minmax", "percentile", "mse")
        }
    assert errors["percentile"] < 0.1 * errors["minmax"]
    assert errors["mse"] < errors["minmax"]


def test_what_it_needs_is_checked(residual: Case) -> None:
    with pytest.raises(TrialError, match="calibration"):
        applied(PostTrainingQuantization(), residual.graph, context(OnnxRuntime(), None))
    with pytest.raises(TrialError, match="integer kernels"):
        residual.quantized(TorchEager())
    unfused = graph_of(randomized(Residual()).eval(), images())
    with pytest.raises(TrialError, match="batch norm"):
        applied(PostTrainingQuantization(), unfused, context(OnnxRuntime(), residual.calibration))
    with pytest.raises(NoEffect, match="only 5 layers"):
        residual.quantized(OnnxRuntime(), float_layers=8)


class PaddedShortcut(nn.Module):
    """A shortcut that subsamples and pads channels, as in the residual networks for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return torch.relu(self.second(x) + shortcut).mean((2, 3))


def test_movements_between_quantizers_move_integers() -> None:
    case = Case(graph_of(PaddedShortcut(), images()), images(32).numpy())
    for runtime in (OnnxRuntime(), OpenVino()):
        quantized = case.quantized(runtime)
        integers = packed(quantized)
        record_values(integers)
        moved = [node for node in integers.module.graph.nodes if node.target in MOVEMENTS]
        assert len(moved) >= 2
        assert {node.meta["val"].dtype for node in moved} == {torch.uint8}
        x = images(5)
        with torch.no_grad():
            assert torch.equal(quantized(x)[0], integers(x)[0])


def test_integers_are_small_on_disk(residual: Case, tmp_path) -> None:
    sizes = {}
    for name, graph in (("float", residual.graph), ("integers", residual.quantized(OnnxRuntime()))):
        (tmp_path / name).mkdir()
        OnnxRuntime().export(graph, tmp_path / name)
        import onnx

        held = onnx.load(tmp_path / name / "model.onnx").graph.initializer
        sizes[name] = sum(len(each.raw_data) for each in held)
    weights = sum(parameter.numel() for parameter in residual.graph.module.parameters())
    assert sizes["integers"] < weights * 1.5 + 4096 < sizes["float"]


def test_calibration_is_not_sensitive_to_batching(residual: Case) -> None:
    whole = residual.quantized(OnnxRuntime())
    shuffled = Case(residual.graph, np.ascontiguousarray(residual.calibration[::-1])).quantized(OnnxRuntime())
    x = images(4)
    with torch.no_grad():
        assert torch.allclose(whole(x)[0], shuffled(x)[0], atol=1e-5)
