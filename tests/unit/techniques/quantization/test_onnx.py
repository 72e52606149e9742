"""Techniques for ONNX files: what they need, what they leave alone, and what they say when they do not apply."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto

from temper.core import catalog
from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.schema import Schema, TensorSpec
from temper.core.technique import Technique, applied
from temper.graph.facts import has_quantizers
from temper.graph.onnx.facts import control_flow, float_products
from temper.graph.onnx.folding import prepared
from temper.graph.onnx.program import graph_of, onnx_model, with_model
from temper.hardware.detect import this_host
from temper.techniques.fusion.batch_norm import BatchNormFusion
from temper.techniques.fusion.onnx_constants import OnnxConstantFolding
from temper.techniques.quantization._onnx import behind_products, calibration_feeds, saturates
from temper.techniques.quantization._onnx_ranges import activation_ranges
from temper.techniques.quantization.onnx_dynamic import OnnxDynamicQuantization
from temper.techniques.quantization.onnx_nncf import OnnxNncfQuantization
from temper.techniques.quantization.onnx_static import OnnxStaticQuantization, _quantized, most_sensitive
from temper.testing.graphs import Example
from temper.testing.onnx_files import onnx_examples
from temper.testing.techniques import context_of


def example(name: str) -> tuple[Example, Context]:
    found = next(each for each in onnx_examples() if each.name == f"ONNX {name}")
    return found, context_of(found, catalog.get(Runtime, "onnxruntime")())


def model_of(graph: Graph) -> ModelProto:
    model = onnx_model(graph)
    assert model is not None
    return model


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in model_of(graph).graph.node]


def test_folding_decides_the_branch_and_absorbs_the_batch_norm() -> None:
    found, context = example("convolutions")
    after = applied(OnnxConstantFolding(), found.graph, context)
    assert not {"If", "Sigmoid", "BatchNormalization"} & set(operators(after))
    inputs = tuple(map(torch.from_numpy, found.inputs(4, seed=9)))
    assert torch.allclose(after(*inputs)[0], found.graph(*inputs)[0], atol=1e-6)
    with pytest.raises(NoEffect, match="nothing to fold"):
        applied(OnnxConstantFolding(), after, context)


def test_static_quantization_leaves_what_follows_the_last_product() -> None:
    found, context = example("convolutions")
    after = applied(OnnxStaticQuantization(), found.graph, context)
    makers = {output: node for node in model_of(after).graph.node for output in node.output}
    assert makers["probabilities"].op_type == "Softmax"
    weights = [each for each in model_of(after).graph.initializer if each.data_type == onnx.TensorProto.INT8]
    assert {each.dims[0] for each in weights if len(each.dims) > 1} == {8, 5}
    assert "DequantizeLinear" in operators(after)


def test_float_layers_stay_in_float() -> None:
    found, context = example("convolutions")
    whole, spared = (applied(OnnxStaticQuantization(float_layers=count), found.graph, context) for count in (0, 1))
    assert operators(spared).count("DequantizeLinear") < operators(whole).count("DequantizeLinear")
    with pytest.raises(NoEffect, match="float_layers=4, and the file has 3 products"):
        applied(OnnxStaticQuantization(float_layers=4), found.graph, context)


def rescaled(model: ModelProto, product: NodeProto, position: int, scale: float) -> None:
    """Give another scale to the quantizer of one input of a product."""
    makers = {output: node for node in model.graph.node for output in node.output}
    name = makers[product.input[position]].input[1]
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = np.full(tuple(tensor.dims), scale, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))


@pytest.mark.parametrize("position", [0, 1])
def test_sensitivity_ranks_the_product_with_the_coarsest_input_or_weight(position: int) -> None:
    found, _ = example("convolutions")
    feeds = [{"image": found.inputs(1, seed=seed)[0]} for seed in range(3)]
    reference = prepared(found.graph)
    model = _quantized(reference, feeds, [], {}, signed=False, narrow=False)
    # What the second one reads is also what the first one gives: both would lose the same by a coarse quantizer there.
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for convolution in convolutions[: 1 + position]:
        changed = ModelProto()
        changed.CopyFrom(model)
        rescaled(changed, convolution, position, 1.0)
        assert most_sensitive(changed, reference, feeds, 1) == [convolution.name]


def scales(graph: Graph) -> dict[str, float]:
    """The scale of each activation's quantizer, by the activation's name."""
    model = model_of(graph)
    known = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in known]
    return {node.input[0]: float(known[node.input[1]]) for node in nodes}


@pytest.fixture(scope="module")
def outlier() -> tuple[Graph, Context]:
    """Products whose calibration inputs hold one value far from all others."""
    found, context = example("products")
    rows, kinds = found.draw(np.random.default_rng(0), 256)
    rows[3, 5] = 12.0
    return found.graph, replace(context, calibration=(rows, kinds))


def test_percentiles_leave_outliers_out(outlier: tuple[Graph, Context]) -> None:
    graph, context = outlier
    assert context.calibration is not None
    widest = scales(applied(OnnxStaticQuantization(), graph, context))
    found = scales(applied(OnnxStaticQuantization(ranges="percentile", percentile=99.0), graph, context))
    assert found.keys() == widest.keys()
    assert found["row"] < 0.6 * widest["row"]
    low, high = np.percentile(context.calibration[0], [0.5, 99.5])
    assert found["row"] == pytest.approx((high - low) / 255, rel=0.02)


def test_ranges_of_least_squared_error_have_it(outlier: tuple[Graph, Context]) -> None:
    graph, context = outlier
    assert context.calibration is not None
    values, errors = context.calibration[0], {}
    for ranges in ("minmax", "percentile", "mse"):
        after = model_of(applied(OnnxStaticQuantization(ranges=ranges), graph, context))
        known = {each.name: onnx.numpy_helper.to_array(each) for each in after.graph.initializer}
        node = next(each for each in after.graph.node if each.op_type == "QuantizeLinear" and each.input[0] == "row")
        scale, zero_point = (known[each].astype(np.float64) for each in node.input[1:3])
        rounded = (np.clip(np.rint(values / scale) + zero_point, 0, 255) - zero_point) * scale
        errors[ranges] = float(((rounded - values) ** 2).mean())
    assert min(errors, key=errors.__getitem__) == "mse"


def test_a_rectified_value_has_one_range(outlier: tuple[Graph, Context]) -> None:
    found, context = example("convolutions")
    model, feeds = prepared(found.graph), calibration_feeds(found.graph, context)
    ranges = activation_ranges(model, feeds, behind_products(model), "percentile", 99.0, symmetric=False)
    (rectifier, *_) = (node for node in model.graph.node if node.op_type == "Relu")
    assert ranges[rectifier.input[0]] == ranges[rectifier.output[0]]
    assert ranges[rectifier.output[0]][0] == 0.0
    assert "probabilities" not in ranges


def test_dynamic_quantization_needs_no_calibration_and_spares_convolutions() -> None:
    found, context = example("products")
    after = applied(OnnxDynamicQuantization(), found.graph, replace(context, calibration=None))
    assert operators(after).count("MatMulInteger") == 2
    convolutions, context = example("convolutions")
    after = applied(OnnxDynamicQuantization(), convolutions.graph, context)
    assert operators(after).count("Conv") == 2


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (OnnxStaticQuantization(), "float weights outside of branches"),
        (OnnxDynamicQuantization(), "or LSTMs"),
        (BatchNormFusion(), "is a torch program"),
    ],
)
def test_control_flow_and_the_kind_of_model_are_named(technique: Technique, message: str) -> None:
    found, context = example("convolutions")
    model: ModelProto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        branching (float[batch, 3, 8, 8] image) => (float[batch, 3, 8, 8] probabilities)
        {
            largest = ReduceMax <keepdims = 0> (image)
            chosen = Cast <to = 9> (largest)
            probabilities = If (chosen) <
                then_branch = then () => (float[batch, 3, 8, 8] a) { a = Relu (image) },
                else_branch = other () => (float[batch, 3, 8, 8] b) { b = Neg (image) }
            >
        }
    """)
    graph = with_model(found.graph, model)
    assert len(control_flow(model)) == 1
    assert not float_products(model)
    with pytest.raises(TrialError, match=message):
        applied(technique, graph, context)


def test_onnx_techniques_refuse_torch_programs_and_quantized_files() -> None:
    from temper.testing.graphs import examples

    found, context = example("convolutions")
    with pytest.raises(TrialError, match="is an ONNX file"):
        applied(OnnxStaticQuantization(), examples()[0].graph, context)
    after = applied(OnnxStaticQuantization(), found.graph, context)
    assert has_quantizers.holds(after, context)
    with pytest.raises(TrialError, match="float weights"):
        applied(OnnxStaticQuantization(), after, context)


@pytest.fixture(scope="module")
def texts() -> tuple[Graph, Context]:
    """A recurrent file of dynamic length, and calibration inputs of lengths 3 to 8: tokens, and behind them lengths."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 24)
    tokens = np.where(np.arange(8) < lengths[:, None], rng.integers(1, 9, (24, 8)), 0)
    model: ModelProto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        texts (int64[batch, length] tokens) => (float[batch, length, 4] logits)
        {
            embedded = Gather (table, tokens)
            wide = MatMul (embedded, first)
            hidden = Relu (wide)
            along = Constant <value = int64 {1}> ()
            sums = CumSum (hidden, along)
            logits = MatMul (sums, second)
        }
    """)
    for name, shape in {"table": (9, 12), "first": (12, 16), "second": (16, 4)}.items():
        values = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    schema = Schema(
        inputs=(TensorSpec(name="tokens", shape=(None, "length"), dtype="int64"),),
        outputs=(TensorSpec(name="logits", shape=(None, "length", 4), dtype="float32"),),
        nesting="tensor",
    )
    _, context = example("products")
    graph = graph_of(model, schema, (torch.from_numpy(tokens[:2, :3]),))
    return graph, replace(context, calibration=(tokens, lengths))


def test_calibration_calls_have_one_length_each(texts: tuple[Graph, Context]) -> None:
    graph, context = texts
    assert context.calibration is not None
    tokens, lengths = context.calibration
    calls = [each["tokens"] for each in calibration_feeds(graph, context)]
    assert [each.shape for each in calls] == [(1, length) for length in lengths]
    assert all((call[0] == row[: call.shape[1]]).all() for call, row in zip(calls, tokens))


@pytest.mark.parametrize(
    "technique",
    [
        OnnxStaticQuantization(),
        OnnxStaticQuantization(ranges="mse"),
        OnnxStaticQuantization(float_layers=1),
        OnnxDynamicQuantization(),
        OnnxNncfQuantization(),
    ],
    ids=str,
)
def test_techniques_leave_the_length_dynamic(technique: Technique, texts: tuple[Graph, Context]) -> None:
    graph, context = texts
    if isinstance(technique, OnnxNncfQuantization):
        pytest.importorskip("nncf")
    after = applied(technique, graph, context)
    for batch, length in ((1, 1), (2, 5), (3, 8)):
        tokens = torch.from_numpy(np.random.default_rng(length).integers(1, 9, (batch, length)))
        (exact,), (found,) = graph(tokens), after(tokens)
        assert found.shape == (batch, length, 4)
        assert (found - exact).square().mean() < 0.01 * exact.square().mean()


def test_weights_are_narrow_only_where_sums_saturate() -> None:
    def with_features(*features: str) -> Any:
        return replace(this_host(), features=features)

    assert saturates(with_features("avx2", "avx512f"))
    assert not saturates(with_features("avx2", "avx512_vnni"))


def test_the_tail_is_what_no_product_follows() -> None:
    found, _ = example("products")
    names = {node.name: node.op_type for node in model_of(found.graph).graph.node}
    assert [names[each] for each in behind_products(model_of(found.graph))] == []
    found, _ = example("convolutions")
    names = {node.name: node.op_type for node in model_of(found.graph).graph.node}
    assert [names[each] for each in behind_products(model_of(found.graph))] == ["Softmax"]
