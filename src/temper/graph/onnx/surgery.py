"""Changes to an ONNX model in place: names, constants, the axis of the examples, branches that are decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from temper.core.schema import Array
from temper.graph.onnx.program import nodes_of, subgraphs

FLOATS = ("float16", "float64")
"""Types of inputs and outputs that a caller sees as float32, which is what data is kept in."""
LEAST_IR = 4
"""The first version of the format in which weights need not be inputs."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a file: its name, its dtype, and the axis along which it counts the examples."""

    name: str
    dtype: str
    axis: int
    rank: int

    @property
    def plain(self) -> bool:
        """Whether it already counts the examples first and is not of a float type that data is not kept in."""
        return self.axis == 0 and self.dtype not in FLOATS

    @property
    def outer_type(self) -> int | None:
        """The type that a caller sees, where it differs from the file's own."""
        return TensorProto.FLOAT if self.dtype in FLOATS else None

    @property
    def element_type(self) -> int | None:
        """The file's own type, where a caller sees another one."""
        return helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)) if self.dtype in FLOATS else None


def weights_are_no_inputs(model: ModelProto) -> None:
    """Take the weights out of the inputs, where old files list them: what a caller may replace is not constant."""
    weights = {each.name for each in model.graph.initializer}
    kept = [each for each in model.graph.input if each.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, LEAST_IR)


def bake(model: ModelProto, name: str, value: Array) -> None:
    """Turn an input into a constant."""
    kept = [each for each in model.graph.input if each.name != name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.append(numpy_helper.from_array(value, name))


def name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own: some exporters leave them empty, and tools tell nodes apart by name."""
    used: set[str] = set()
    for node in nodes_of(model.graph):
        if not node.name or node.name in used:
            wanted = node.name or node.op_type
            node.name = next(each for number in count() if (each := f"{wanted}_{number}") not in used)
        used.add(node.name)


def examples_first(model: ModelProto, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Let inputs and outputs count the examples along their first axis, and floats be float32, whatever is inside."""
    for value, port in zip(model.graph.input, inputs, strict=True):
        if not port.plain:
            inner = _inner_name(model, port.name)
            forth = [*range(1, port.rank)]
            forth.insert(port.axis, 0)
            _insert(model, 0, port.name, inner, forth, port.element_type)
            _restate(value, port)
    for value, port in zip(model.graph.output, outputs, strict=True):
        if not port.plain:
            inner = _inner_name(model, port.name)
            back = [port.axis, *(axis for axis in range(port.rank) if axis != port.axis)]
            _insert(model, len(model.graph.node), inner, port.name, back, port.outer_type)
            _restate(value, port)


def rename(graph: GraphProto, old: str, new: str) -> None:
    """Rename a value everywhere but among the graph's own inputs and outputs."""
    for tensor in graph.initializer:
        if tensor.name == old:
            tensor.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for inner in subgraphs(node):
            rename(inner, old, new)
            for value in inner.output:
                if value.name == old:
                    value.name = new


def inline(graph: GraphProto, node: NodeProto, branch: GraphProto) -> None:
    """Put the nodes of a branch in the place of the `If` that would run it."""
    place = list(graph.node).index(node)
    body, tensors = list(branch.node), list(branch.initializer)
    for inner, outer in zip([each.name for each in branch.output], list(node.output), strict=True):
        body.append(helper.make_node("Identity", [inner], [outer], name=f"{node.name}_{outer}"))
    kept = [*graph.node[:place], *body, *graph.node[place + 1 :]]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)


def _inner_name(model: ModelProto, name: str) -> str:
    """Give the value of that name another one inside of the graph, so that the name is free for the outside."""
    used = {each for node in nodes_of(model.graph) for each in (*node.input, *node.output)}
    inner = next(each for number in count() if (each := f"{name}_inside_{number}") not in used)
    rename(model.graph, name, inner)
    return inner


def _insert(model: ModelProto, place: int, source: str, result: str, permutation: list[int], to: int | None) -> None:
    """Insert a transposition and, where a type is given, a cast, between two values."""
    middle = f"{result}_transposed"
    nodes = [helper.make_node("Transpose", [source], [middle], name=middle, perm=permutation)]
    last = ("Identity", {}) if to is None else ("Cast", {"to": to})
    nodes.append(helper.make_node(last[0], [middle], [result], name=f"{result}_cast", **last[1]))
    kept = [*model.graph.node[:place], *nodes, *model.graph.node[place:]]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _restate(value: ValueInfoProto, port: Port) -> None:
    """Write into the file what it now takes or gives: the examples first, and floats as float32."""
    tensor = value.type.tensor_type
    if tensor.HasField("shape") and tensor.shape.dim:
        sizes = list(tensor.shape.dim)
        sizes.insert(0, sizes.pop(port.axis))
        del tensor.shape.dim[:]
        tensor.shape.dim.extend(sizes)
    tensor.elem_type = port.outer_type or tensor.elem_type
