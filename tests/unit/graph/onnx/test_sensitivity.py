import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from temper.core.context import Context
from temper.core.schema import Schema, TensorSpec
from temper.core.technique import applied
from temper.graph.onnx.folding import prepared
from temper.graph.onnx.program import feeds_of, graph_of, onnx_model, plain_session, serialized
from temper.graph.onnx.sensitivity import layers_of_file
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.techniques.quantization.onnx_static import OnnxStaticQuantization
from temper.testing.onnx_files import onnx_examples
from temper.testing.techniques import Example

ONE = """
<ir_version: 10, opset_import: ["" : 17]>
one (float[n, 12] x) => (float[n, 5] y) { y = MatMul(x, weight) }
"""


@pytest.fixture(scope="module", params=onnx_examples(), ids=lambda each: each.name)
def example(request: pytest.FixtureRequest) -> Example:
    return request.param


def arrays(example: Example) -> tuple[np.ndarray, ...]:
    return example.draw(np.random.default_rng(1), 16)


def quantized(example: Example) -> ModelProto:
    context = Context(runtime=OnnxRuntime(), target=this_host(), seed=0, calibration=arrays(example))
    model = onnx_model(applied(OnnxStaticQuantization(), example.graph, context))
    assert model is not None
    return model


def test_each_layer_says_what_its_quantizers_do(example: Example) -> None:
    reference, model = prepared(example.graph), quantized(example)
    feeds = feeds_of(example.graph.schema, arrays(example), 16)
    layers = layers_of_file(model, reference, feeds, 60.0)
    assert len(layers) >= 2
    for layer in layers:
        assert layer.sensitivity is not None
        assert 0 < layer.sensitivity < 0.02
        for part in (layer.weight, layer.input):
            assert part is not None
            # Rounding to 8 bits leaves an error of a twelfth of the squared step where nothing is clipped.
            assert part.quantization_error < part.scale_factor[1] ** 2 / 8
            assert part.original_range[0] < part.original_range[1]


def test_ranges_and_errors_are_those_of_the_float_file(example: Example) -> None:
    reference, model = prepared(example.graph), quantized(example)
    feeds = feeds_of(example.graph.schema, arrays(example), 16)
    first = layers_of_file(model, reference, feeds, 60.0)[0]
    node = next(each for each in reference.graph.node if each.name == first.node)
    weights = {each.name: numpy_helper.to_array(each) for each in reference.graph.initializer}
    weight = next(weights[name] for name in node.input if name in weights and weights[name].ndim > 1)
    assert first.weight is not None
    assert first.weight.original_range == (float(weight.min()), float(weight.max()))


def test_sensitivity_of_a_single_product_is_that_of_the_whole_file() -> None:
    """With one layer, what that layer loses alone is what the quantized file loses."""
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(ONE)
    weight = generator.standard_normal((12, 5), dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    x = generator.standard_normal((16, 12), dtype=np.float32)
    schema = Schema(
        inputs=(TensorSpec(name="x", shape=(None, 12), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=(None, 5), dtype="float32"),),
        nesting="tensor",
    )
    graph = graph_of(model, schema, (torch.from_numpy(x),))
    context = Context(runtime=OpenVino(), target=this_host(), seed=0, calibration=(x,))
    changed = onnx_model(applied(OnnxStaticQuantization(), graph, context))
    assert changed is not None
    (layer,) = layers_of_file(changed, prepared(graph), [{"x": x}], 60.0)
    (found,) = plain_session(serialized(changed)).run(["y"], {"x": x})
    exact = x.astype(np.float64) @ weight
    assert layer.sensitivity == pytest.approx(((found - exact) ** 2).sum() / (exact**2).sum(), rel=1e-3)


def test_bits_are_those_of_the_stored_integers() -> None:
    """Weights of 4 bits and inputs of 8."""
    generator = np.random.default_rng(0)
    reference = onnx.parser.parse_model(ONE.replace("17", "21").replace("y = MatMul", "[product] y = MatMul"))
    model = ModelProto()
    model.CopyFrom(reference)
    weight = generator.standard_normal((12, 5), dtype=np.float32)
    reference.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    integers = np.clip(np.round(weight / 0.3), -8, 7).astype(np.int8)
    model.graph.initializer.extend(
        [
            helper.make_tensor("integers", TensorProto.INT4, (12, 5), integers.ravel()),
            helper.make_tensor("zero", TensorProto.INT4, (), [0]),
            numpy_helper.from_array(np.array(0.3, np.float32), "scale"),
            numpy_helper.from_array(np.array(0.05, np.float32), "step"),
            numpy_helper.from_array(np.array(128, np.uint8), "middle"),
        ]
    )
    quantizers = [
        helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "step", "middle"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["weight"]),
    ]
    (product,) = model.graph.node
    product.input[0] = "rounded"
    del model.graph.node[:]
    model.graph.node.extend([*quantizers, product])
    (layer,) = layers_of_file(model, reference, [{"x": generator.standard_normal((4, 12), dtype=np.float32)}], 60.0)
    assert layer.weight is not None
    assert layer.input is not None
    assert (layer.weight.bits, layer.input.bits) == (4, 8)
    assert layer.weight.quantization_error == pytest.approx(((weight - 0.3 * integers) ** 2).mean(), rel=1e-4)


def test_a_float_file_has_layers_without_quantizers(example: Example) -> None:
    reference = prepared(example.graph)
    layers = layers_of_file(reference, reference, feeds_of(example.graph.schema, arrays(example), 4), 1.0)
    assert layers
    assert all(each.sensitivity is None and each.weight is None for each in layers)
