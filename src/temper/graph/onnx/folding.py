"""Constant folding of an ONNX model: what no input decides is computed once, and left out."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.core.schema import Schema
from temper.graph.onnx.facts import decided_branches
from temper.graph.onnx.program import first_line, nodes_of, onnx_model, opset, plain_session, reads, serialized
from temper.graph.onnx.surgery import inline, name_nodes

LEAST_OPSET = 13
"""The first version with one scale for each channel."""
TARGET_OPSET = 17


def folded(graph: Graph) -> ModelProto:
    """The model of an ONNX file's graph with its inputs' sizes written in and everything constant computed.

    Branches that constants decide are inlined first, because ONNX Runtime's folding can crash on them. Then its basic
    optimizations, which leave standard operators only, do the rest (batch norms go into convolutions here too).

    Raises: TrialError if ONNX Runtime cannot do that.
    """
    model = ModelProto()
    source = onnx_model(graph)
    assert source is not None
    model.CopyFrom(source)
    _state_sizes(model, graph.schema)
    while branches := decided_branches(model.graph):
        decide(model, branches[0])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(file)
        try:
            onnxruntime.InferenceSession(serialized(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise TrialError(f"ONNX Runtime cannot fold the constants of the file: {first_line(error)}") from error
        result = onnx.load(file)
    _forget_unused_domains(result)
    name_nodes(result)
    return result


def prepared(graph: Graph) -> ModelProto:
    """The folded file, in a version of ONNX that knows a scale for each channel, with its shapes inferred.

    Raises: TrialError if it cannot be folded or converted.
    """
    model = folded(graph)
    try:
        if opset(model) < LEAST_OPSET:
            model = onnx.version_converter.convert_version(model, TARGET_OPSET)
        return onnx.shape_inference.infer_shapes(model)
    except Exception as error:
        raise TrialError(
            f"the ONNX file of opset {opset(model)} cannot be converted to opset {TARGET_OPSET}, which quantizers "
            f"need: {first_line(error)}. Export it again with a newer opset"
        ) from error


def decide(model: ModelProto, node: NodeProto) -> None:
    """Put the branch that an `If` of the graph always takes in its place."""
    condition = _computed(model, node.input[0])
    taken = "then_branch" if condition else "else_branch"
    branch = next(each.g for each in node.attribute if each.name == taken)
    inline(model.graph, node, branch)


def _computed(model: ModelProto, name: str) -> bool:
    """The value of a condition that depends on no input."""
    needed, kept = {name}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= reads(node)
            kept.append(node)
    weights = [each for each in model.graph.initializer if each.name in needed]
    output = helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None)
    part = helper.make_model(
        helper.make_graph(kept[::-1], "condition", [], [output], weights),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    (value,) = plain_session(serialized(part)).run([name], {})
    return bool(np.asarray(value).reshape(-1)[0])


def _state_sizes(model: ModelProto, schema: Schema) -> None:
    """Write the sizes that every call has into the inputs, and drop what was inferred from less."""
    for value, spec in zip(model.graph.input, schema.inputs, strict=True):
        shape = ["batch" if size is None else size for size in spec.shape]
        value.CopyFrom(helper.make_tensor_value_info(spec.name, value.type.tensor_type.elem_type, shape))
    del model.graph.value_info[:]


def _forget_unused_domains(model: ModelProto) -> None:
    """ONNX Runtime lists all the operator sets that it knows."""
    used = {node.domain for node in nodes_of(model.graph)} | {""}
    kept = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
