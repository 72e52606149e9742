import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from temper.graph.onnx.layers import products
from temper.graph.onnx.packing import LEAST, pack_weights

INPUTS = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 6, 6])]
OUTPUTS = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7, 6, 6])]


def quantized(*bits: int) -> onnx.ModelProto:
    """Convolutions in a row, with weights of so many bits between quantizers, one of them of a size no byte divides."""
    rng = np.random.default_rng(0)
    initializers = [
        numpy_helper.from_array(np.array(0.05, np.float32), "scale"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
    ]
    nodes, value = [], "x"
    for index, width in enumerate(bits):
        shape = (8 if index < len(bits) - 1 else 7, 8, 3, 3)
        weight = rng.integers(-(2 ** (width - 1)), 2 ** (width - 1), shape).astype(np.int8)
        weight.flat[:2] = -(2 ** (width - 1)), 2 ** (width - 1) - 1
        initializers += [
            numpy_helper.from_array(weight, f"w{index}"),
            numpy_helper.from_array(np.full(shape[0], 0.01, np.float32), f"s{index}"),
            numpy_helper.from_array(np.zeros(shape[0], np.int8), f"z{index}"),
        ]
        nodes += [
            helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"q{index}"]),
            helper.make_node("DequantizeLinear", [f"q{index}", "scale", "zero"], [f"d{index}"]),
            helper.make_node("DequantizeLinear", [f"w{index}", f"s{index}", f"z{index}"], [f"f{index}"], axis=0),
            helper.make_node("Conv", [f"d{index}", f"f{index}"], [f"c{index}"], pads=[1, 1, 1, 1]),
        ]
        value = f"c{index}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    graph = helper.make_graph(nodes, "g", INPUTS, OUTPUTS, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def answers(model: onnx.ModelProto, runtime: str) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(1, 8, 6, 6)).astype(np.float32)
    if runtime == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": x})[0])
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ordered_ops()]
    assert not {"Convert", "Split", "Reduce", "Eltwise", "Reshape"} & set(kinds), "not computed beforehand"
    return np.asarray(compiled(x)[0])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("bits", [(2, 2), (3, 4), (5, 6), (7, 7)])
def test_the_same_answers_from_fewer_bytes(bits: tuple[int, int], runtime: str) -> None:
    model, packed = quantized(*bits), quantized(*bits)
    pack_weights(packed)
    onnx.checker.check_model(packed, full_check=True)
    assert np.array_equal(answers(model, runtime), answers(packed, runtime))
    planes = [numpy_helper.to_array(each) for each in packed.graph.initializer if each.data_type == TensorProto.UINT8]
    counts = {8 * 8 * 9: bits[0], 7 * 8 * 9: bits[1]}
    stored = sum(each.nbytes for each in planes if each.ndim == 2)
    exact = sum(count * width / 8 for count, width in counts.items())
    assert exact <= stored <= exact + 2 * 8


@pytest.mark.parametrize("bits", [(3,), (8, 3, 8, 5), (2, 2)])
def test_layers_are_found_behind_packed_weights(bits: tuple[int, ...]) -> None:
    model, packed = quantized(*bits), quantized(*bits)
    pack_weights(packed)
    assert list(products(packed)) == list(products(model))
    assert [each.weight for each in products(packed)] == [f"w{index}" for index in range(len(bits))]


def test_bytes_of_a_large_weight() -> None:
    model = quantized(8, 8)
    before = model.ByteSize()
    pack_weights(model)
    assert model.ByteSize() == before, "8 bits were changed"
    wide = np.random.default_rng(0).integers(-2, 2, 100_000).astype(np.int8)
    model.graph.initializer.append(numpy_helper.from_array(wide, "w9"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["w9", "scale", "z9"], ["f9"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "z9"))
    pack_weights(model)
    assert model.ByteSize() - before < 100_000 / 4 + 4000


def test_small_tensors_stay() -> None:
    model = quantized(2)
    small = np.zeros(LEAST - 1, np.int8)
    model.graph.initializer.append(numpy_helper.from_array(small, "w9"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["w9", "scale", "z9"], ["f9"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "z9"))
    pack_weights(model)
    names = {each.name for each in model.graph.initializer}
    assert "w9" in names
    assert "w0" not in names
