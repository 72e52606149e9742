"""An ONNX model as a module, and the graph of one node that calls it.

The model is kept as the bytes of its file in a buffer, so that copies, comparisons and fingerprints of modules hold for
it as they do for weights. It runs in ONNX Runtime with all graph optimizations switched off, operator by operator.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn
from torch.fx import Graph as Nodes
from torch.fx import GraphModule

from temper.core.errors import TrialError
from temper.core.graph import ONNX, Graph
from temper.core.lengths import groups, inputs_at, separated
from temper.core.schema import Array, Schema

LARGEST_BYTES = 2**31 - 1
"""What one ONNX file may hold (protobuf's limit)."""


class OnnxProgram(nn.Module):
    """Runs an ONNX model: flat tensors in, in the order of the model's inputs, and a tuple of its outputs out."""

    model: Tensor

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        self.register_buffer("model", torch.from_numpy(np.frombuffer(serialized(model), np.uint8).copy()))

    @cached_property
    def proto(self) -> ModelProto:
        """The model, parsed; whoever changes it copies it first."""
        return onnx.load_model_from_string(self.model.numpy().tobytes())

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        return plain_session(self.model.numpy().tobytes())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = [each.detach().numpy() for each in inputs]
        feed = dict(zip((each.name for each in self.session.get_inputs()), arrays, strict=True))
        return tuple(torch.from_numpy(np.array(each)) for each in self.session.run(None, feed))

    def __getstate__(self) -> dict[str, Any]:
        """Without the session, which cannot be copied, and the parsed model: both are made again where needed."""
        return {name: value for name, value in self.__dict__.items() if name not in ("proto", "session")}


def feeds_of(schema: Schema, arrays: Sequence[Array], most: int) -> list[dict[str, Array]]:
    """The first stored examples, at most so many, as calls of a file's batch (1 where it is dynamic), by input names.

    Each call has one length, and the calls come in the order of the examples, whatever their lengths.
    """
    size, names = schema.batch or 1, [spec.name for spec in schema.inputs]
    inputs, lengths = separated(schema, [each[:most] for each in arrays])
    calls = sorted(groups(lengths, len(inputs[0]), size), key=lambda rows: int(rows[0]))
    return [dict(zip(names, inputs_at(schema, inputs, lengths, np.resize(rows, size)))) for rows in calls]


def plain_session(model: bytes | str) -> onnxruntime.InferenceSession:
    """A session that runs the model (bytes, or the path of a file) as it is written. Raises: as ONNX Runtime does."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def showing(model: ModelProto, values: Iterable[str]) -> ModelProto:
    """A copy of the model that gives these float values as well, behind its own outputs."""
    shown = ModelProto()
    shown.CopyFrom(model)
    known = {each.name for each in model.graph.output}
    for name in dict.fromkeys(values):
        if name not in known:
            shown.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return shown


def graph_of(model: ModelProto, schema: Schema, example: tuple[Tensor, ...]) -> Graph:
    """The graph of an ONNX model whose inputs and outputs are those of the schema, in its order."""
    nodes = Nodes()
    inputs = tuple(nodes.placeholder(f"input_{index}") for index in range(len(schema.inputs)))
    nodes.output(nodes.call_module(ONNX, inputs))
    module = GraphModule({ONNX: OnnxProgram(model)}, nodes)
    return Graph(module=module, schema=schema, example=example)


def onnx_model(graph: Graph) -> ModelProto | None:
    """The model of an ONNX file's graph, which must not be changed in place; None for a torch program."""
    program = getattr(graph.module, ONNX, None)
    return program.proto if isinstance(program, OnnxProgram) else None


def with_model(graph: Graph, model: ModelProto) -> Graph:
    """The graph with another model of the same inputs and outputs.

    Raises: TrialError if these have other names than before, or ONNX Runtime cannot load the model.
    """
    names = [each.name for each in (*model.graph.input, *model.graph.output)]
    wanted = [spec.name for spec in (*graph.schema.inputs, *graph.schema.outputs)]
    if names != wanted:
        raise TrialError(f"the new ONNX model has inputs and outputs {names}, and must have {wanted}")
    changed = graph_of(model, graph.schema, graph.example)
    try:
        plain_session(serialized(model))
    except Exception as error:
        raise TrialError(f"ONNX Runtime cannot load the new ONNX model: {first_line(error)}") from error
    return changed


def serialized(model: ModelProto) -> bytes:
    """The bytes of the model's file. Raises: TrialError if they are more than one file may hold."""
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except Exception as error:
        raise TrialError(f"the ONNX model is larger than a file may be ({LARGEST_BYTES:,} bytes)") from error
    return content


def write_model(model: ModelProto, file: Path) -> None:
    """Write the model as one file."""
    file.write_bytes(serialized(model))


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes of an ONNX graph, and of the graphs that its nodes hold (the branches of `If`, the body of `Loop`)."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes_of(inner)


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs that a node holds as attributes."""
    found = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        found += attribute.graphs
    return found


def reads(node: NodeProto) -> set[str]:
    """The values that a node reads, also those that the graphs inside of it take from around it."""
    return {*node.input, *(name for graph in subgraphs(node) for inner in nodes_of(graph) for name in inner.input)}


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The tensors of known value by name: initializers, and what the `Constant` nodes of this graph hold."""
    found = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def all_constants(model: ModelProto) -> dict[str, TensorProto]:
    """The same for the whole model: its graph and those inside of it."""
    inside = [inner for node in nodes_of(model.graph) for inner in subgraphs(node)]
    return {name: tensor for graph in (model.graph, *inside) for name, tensor in constants(graph).items()}


def size_of(tensor: TensorProto) -> tuple[int, int]:
    """How many values a tensor holds, and their bytes."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return count, count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def array_of(tensor: TensorProto) -> Array:
    return np.asarray(numpy_helper.to_array(tensor))


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operators that a model is written in."""
    return next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 1)


def greatest_change(
    model: ModelProto, changed: ModelProto, inputs: Mapping[str, Array] | Sequence[Array]
) -> dict[str, float]:
    """How far each output of the changed model is from the model's own, relative to the largest value of that output.

    Infinite where the shape differs, or an output that holds no floats.
    """
    names = [each.name for each in model.graph.input]
    feed = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
    before, after = (plain_session(serialized(each)).run(None, feed) for each in (model, changed))
    return {each.name: _change(one, other) for each, one, other in zip(model.graph.output, before, after)}


def _change(before: Array, after: Array) -> float:
    if before.shape == after.shape and np.array_equal(before, after):
        return 0.0
    if before.shape != after.shape or before.dtype.kind != "f":
        return float("inf")
    return float(np.abs(after - before).max() / max(float(np.abs(before).max()), 1e-12))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the code that ONNX Runtime puts in front of it."""
    return str(error).strip().split("\n", 1)[0].rpartition("] : ")[2][:300] or type(error).__name__
