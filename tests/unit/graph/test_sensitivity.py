"""Errors and sensitivities of quantizers, against a hand-made loss."""

import pytest
import torch
from torch import nn

from temper.core.context import Context
from temper.graph.capture import capture
from temper.graph.facts import weighted_layers
from temper.graph.onnx.layers import placed, products
from temper.graph.onnx_export import export_onnx
from temper.graph.sensitivity import few, layers_of, sensitivities, weight_of
from temper.graph.surgery import clean, set_tensor
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.techniques.quantization._layers import quantize_inputs, quantize_weight
from temper.techniques.quantization.post_training import PostTrainingQuantization


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture(scope="module")
def graphs():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    calibration = (torch.randn(64, 8, generator=generator).numpy(),)
    graph = capture(Two(), ((torch.randn(2, 8),), {}), names=("x",))
    context = Context(runtime=OnnxRuntime(), target=this_host(), seed=0, calibration=calibration)
    return graph, PostTrainingQuantization().apply(graph.copy(), context), calibration


def test_each_layer_has_range_scale_and_error(graphs) -> None:
    graph, quantized, calibration = graphs
    inputs = few(quantized, calibration, 10.0)
    first, second = layers_of(quantized, graph, inputs, 1)
    assert (first.name, second.name) == ("first", "second")
    assert first.flops == 2 * 8 * 16
    weight = graph.module.get_parameter("first.weight")
    assert first.weight is not None
    assert first.weight.original_range[0] == pytest.approx(weight.min().item())
    # Rounding errors are uniform within half a step: their mean square is a twelfth of the step's.
    assert first.weight.quantization_error == pytest.approx(first.weight.scale_factor[1] ** 2 / 12, rel=0.6)
    assert first.input is not None
    assert 0 < first.input.relative_error < 1e-3
    assert second.input is not None
    assert second.input.original_range[0] == 0


def test_the_sensitive_layer_is_the_one_that_was_made_coarse(graphs) -> None:
    _, quantized, calibration = graphs
    coarse = quantized.copy()
    name = next(key for key, _ in coarse.module.named_buffers() if "second" in key and "weight_scale" in key)
    set_tensor(coarse.module, name, 40 * dict(coarse.module.named_buffers())[name])
    inputs = few(coarse, calibration, 10.0)
    before, after = sensitivities(quantized, inputs), sensitivities(coarse, inputs)
    assert list(after) == list(before)
    first, second = after
    assert after[first] == pytest.approx(before[first])
    assert after[second] > 100 * before[second]


def test_rounding_elsewhere_than_at_the_nearest_is_compared_with_the_original_weights(graphs) -> None:
    graph, quantized, calibration = graphs
    moved = quantized.copy()
    scale = next(value for key, value in moved.module.named_buffers() if "first" in key and "weight_scale" in key)
    set_tensor(moved.module, "first.weight", graph.module.get_parameter("first.weight").detach() + scale[:, None])
    (first, _), (same, _) = (layers_of(each, graph, few(each, calibration, 5.0), 1) for each in (moved, quantized))
    assert first.weight.quantization_error > 5 * same.weight.quantization_error


def test_layers_are_found_in_the_exported_file(graphs, tmp_path) -> None:
    import onnx

    graph, quantized, calibration = graphs
    for each in (graph, quantized):
        export_onnx(each, tmp_path / "model.onnx")
        model = onnx.load(tmp_path / "model.onnx")
        found = placed(layers_of(each, graph, few(each, calibration, 1.0), 1), model)
        assert [layer.node for layer in found] == [product.node for product in products(model)]
        assert all(layer.node for layer in found)


def dynamic(graph, group: int | None):
    """The graph with weights and inputs quantized as `quantization.dynamic` does."""
    quantized = graph.copy()
    layers = weighted_layers(quantized)
    for layer in layers:
        scale = weight_of(quantized, layer)[1].abs().amax(1) / 127
        quantize_weight(quantized, layer, 1, scale, (-127, 127))
    quantize_inputs(quantized, layers, group)
    clean(quantized.module)
    return quantized


@pytest.mark.parametrize("group", [None, 8])
def test_rounding_at_run_time_is_part_of_a_layers_sensitivity(graphs, group: int | None) -> None:
    graph, _, calibration = graphs
    quantized = dynamic(graph, group)
    (x,) = inputs = [torch.from_numpy(calibration[0][:8])]
    first, _ = layers_of(quantized, graph, [tuple(inputs)], 1)
    module = {name: tensor.detach() for name, tensor in graph.module.named_parameters()}

    def output(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(torch.nn.functional.linear(values, weight, module["first.bias"]))
        return torch.nn.functional.linear(hidden, module["second.weight"], module["second.bias"])

    weight = module["first.weight"]
    scale = weight.abs().amax(1, keepdim=True) / 127
    if group is None:
        step = (x.max() - x.min()) / 255
        offset = torch.round(-x.min() / step)
        rounded = (torch.round(x / step) + offset - offset) * step
    else:
        step = x.abs().amax(1, keepdim=True) / 127
        rounded = torch.round(x / step) * step
    exact, lost = output(x, weight), output(rounded, torch.round(weight / scale) * scale)
    assert first.sensitivity == pytest.approx(float(((exact - lost) ** 2).sum() / (exact**2).sum()), rel=1e-3)
    assert first.input is not None
    assert first.input.relative_error == pytest.approx(float(((x - rounded) ** 2).sum() / (x**2).sum()), rel=1e-3)
    assert first.input.scale_factor == pytest.approx((float(step.min()), float(step.max())))
    assert first.input.original_range == pytest.approx((float(x.min()), float(x.max())))


def test_a_grid_of_a_whole_call_is_taken_from_as_many_examples_as_a_call_has(graphs) -> None:
    graph, _, calibration = graphs
    assert {len(x) for (x,) in few(dynamic(graph, None), calibration, 10.0, batch=2)} == {2}
    assert {len(x) for (x,) in few(dynamic(graph, 8), calibration, 10.0, batch=2)} == {8}
