"""From an ONNX file and examples to a graph: the file's inputs matched with the data's, the examples counted first.

What is changed in the file is little, and checked: inputs that are constant are written into it, weights are no longer
inputs, and an input or output that counts the examples along another axis is transposed. (The state of a recurrent
model often has the shape (layers, batch, width).)
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, ValueInfoProto
from torch import Tensor, nn

from temper.core.data import Examples
from temper.core.errors import DataError, TaskError, UsageError
from temper.core.graph import Graph
from temper.core.schema import Array, Schema, TensorSpec
from temper.core.task import OnnxFile
from temper.graph.onnx.program import first_line, graph_of, plain_session, serialized
from temper.graph.onnx.surgery import FLOATS, Port, bake, examples_first, name_nodes, weights_are_no_inputs

TOLERANCE = 1e-4
"""Greatest difference, relative to the output's own scale, between the file and what is made of it."""
COMPARED = 16
"""Examples that a file must answer together as alone: one that decides by the whole batch may do so for a few."""
EXAMPLE_BATCH = 2
"""The least batch whose axis differs from that of a single example."""


class OriginalFile(nn.Module):
    """The user's file, operator by operator: the reference for quality. The examples are counted first everywhere."""

    digest: Tensor

    def __init__(self, file: OnnxFile, inputs: Sequence[Port], fixed: dict[str, Array]) -> None:
        super().__init__()
        self._session = plain_session(str(file.path))
        self.inputs, self._fixed = tuple(inputs), fixed
        self.outputs: tuple[Port, ...] = ()
        content = sha256(serialized(onnx.load(file.path)))
        for name, value in sorted(fixed.items()):
            content.update(name.encode() + value.tobytes())
        self.register_buffer("digest", torch.frombuffer(bytearray(content.digest()), dtype=torch.uint8))

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        given = [named[port.name] for port in self.inputs] if named else inputs
        results = self.run([each.numpy() for each in given])
        moved = [torch.from_numpy(np.moveaxis(each, port.axis, 0).copy()) for port, each in zip(self.outputs, results)]
        tensors = [each.float() if port.dtype in FLOATS else each for port, each in zip(self.outputs, moved)]
        return tensors[0] if len(tensors) == 1 else dict(zip((port.name for port in self.outputs), tensors))

    @property
    def output_names(self) -> list[str]:
        return [each.name for each in self._session.get_outputs()]

    def place_outputs(self, inputs: Sequence[Array], axes: Sequence[int]) -> None:
        """Note what the outputs are like, and along which axes they count the examples."""
        results = self.run(inputs)
        self.outputs = tuple(
            Port(name=name, dtype=each.dtype.name, axis=axis, rank=each.ndim)
            for name, each, axis in zip(self.output_names, results, axes)
        )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The file's own outputs for inputs that count the examples first. Raises: as ONNX Runtime does."""
        feed = {
            port.name: np.ascontiguousarray(np.moveaxis(each, 0, port.axis)).astype(port.dtype)
            for port, each in zip(self.inputs, inputs, strict=True)
        }
        results: list[Array] = self._session.run(None, feed | self._fixed)
        return results


def adopt(file: OnnxFile, examples: Examples, batch: int) -> tuple[nn.Module, Graph]:
    """The file itself as a module, and its graph: with a dynamic batch if the file allows it, else with `batch`.

    Raises: TaskError if the file cannot be read or run; DataError if the data does not fit its inputs, or its examples
    differ in length; UsageError if it has another, fixed batch.
    """
    if examples.lengths is not None:
        raise DataError(
            f"{file.path}: the examples differ in length ({'; '.join(map(str, examples.layout))}), and an ONNX file is "
            "run with examples of one shape. Give them padded to one length, with the mask that the file takes, or "
            "give the PyTorch model"
        )
    model = _read(file)
    weights_are_no_inputs(model)
    fixed = {name: _constant(model, file, name, value) for name, value in file.constants.items()}
    free = [each for each in model.graph.input if each.name not in fixed]
    ordered = matched(free, examples, file)
    ports = [_input_port(each, spec, batch) for each, spec in zip(free, ordered.layout, strict=True)]
    original = OriginalFile(file, ports, fixed)
    batches = {_declared_batch(each, port) for each, port in zip(free, ports)}
    sizes = {each for each in batches if each is not None}
    if len(batches) == 1 and sizes - {batch}:
        (size,) = sizes
        raise UsageError(
            f"{file.path} takes a batch of {size} only, and a batch of {batch} is to be measured: ask for it with "
            f"--batch {size}"
        )
    if sizes - {batch}:
        raise DataError(
            f"{file.path} takes {'; '.join(map(_described, free))}, and the data holds "
            f"{'; '.join(map(str, ordered.layout))}: no batch of examples fits all of these inputs"
        )
    axes = None if sizes or not file.dynamic_batch else _dynamic_axes(original, ordered)
    dynamic = axes is not None
    axes = _fixed_axes(original, ordered, batch, file) if axes is None else axes
    original.place_outputs(_batch(ordered, batch), axes)
    graph = _graph(model, original, ordered, fixed, EXAMPLE_BATCH if dynamic else batch, dynamic=dynamic)
    _check(graph, original, file)
    return original, graph


def _declared_batch(value: ValueInfoProto, port: Port) -> int | None:
    sizes = declared(value)
    return sizes[port.axis] if sizes else None


def declared(value: ValueInfoProto) -> list[int | None]:
    """The sizes that the file states for an input, None where it leaves them open."""
    return [each.dim_value if each.HasField("dim_value") else None for each in value.type.tensor_type.shape.dim]


def batch_axis(sizes: Sequence[int | None], example: Sequence[int], batch: int) -> int | None:
    """The axis of an input that counts the examples, so that the others fit an example's own shape; None if none does.

    Where several do, one whose size is open comes before one of the batch's size, and that before any other.
    """
    fitting = [
        axis
        for axis in range(len(sizes))
        if len(sizes) == len(example) + 1
        and all(want in (None, size) for want, size in zip((*sizes[:axis], *sizes[axis + 1 :]), example))
    ]
    return min(fitting, key=lambda axis: (sizes[axis] is not None, sizes[axis] != batch, axis), default=None)


def matched(free: Sequence[ValueInfoProto], examples: Examples, file: OnnxFile) -> Examples:
    """The examples with one array for each input of the file, in its order and under its names.

    Raises: DataError naming the inputs that are missing or unknown.
    """
    names = tuple(each.name for each in free)
    given = examples.names or names[: len(examples.inputs)]
    if set(given) != set(names) or len(given) != len(examples.inputs):
        missing = [each for each in names if each not in given]
        hint = f", or what is the same in every call by constants={{{missing[0]!r}: ...}}" if missing else ""
        raise DataError(
            f"{file.path} takes {'; '.join(map(_described, free))}, and the data holds "
            f"{'; '.join(map(str, examples.layout))}. Give a dict of arrays by these names, or a tuple in their "
            f"order{hint}"
        )
    return in_order(examples, names)


def in_order(examples: Examples, names: Sequence[str]) -> Examples:
    """The examples with their inputs under these names and in this order; those given without names have it."""
    arrays = dict(zip(examples.names or names, examples.inputs, strict=True))
    return Examples(inputs=tuple(arrays[name] for name in names), names=tuple(names), targets=examples.targets)


def _read(file: OnnxFile) -> ModelProto:
    try:
        model = onnx.load(file.path)
        serialized(model)
        plain_session(str(file.path))
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0][:300]
        raise TaskError(
            f"{file.path} cannot be run by ONNX Runtime {onnxruntime.__version__}: {reason}. See that the file is "
            "whole, with its external data beside it, under 2 GB in all, and uses no operators of a package of its own"
        ) from error
    return model


def _constant(model: ModelProto, file: OnnxFile, name: str, value: Any) -> Array:
    found = next((each for each in model.graph.input if each.name == name), None)
    if found is None:
        names = ", ".join(each.name for each in model.graph.input)
        raise TaskError(f"constants: {file.path} has no input called {name!r}; its inputs are {names}")
    array = np.asarray(value).astype(_dtype(found))
    sizes = declared(found)
    if len(sizes) != array.ndim or any(want not in (None, size) for want, size in zip(sizes, array.shape)):
        raise TaskError(f"constants: {name!r} has shape {array.shape}, and {file.path} takes {_described(found)}")
    return array


def _input_port(value: ValueInfoProto, spec: TensorSpec, batch: int) -> Port:
    """How an input is fed. Raises: DataError if the data's shape or dtype does not fit it."""
    dtype = _dtype(value)
    known = value.type.tensor_type.HasField("shape")
    axis = batch_axis(declared(value), spec.shape[1:], batch) if known else 0  # type: ignore[arg-type]
    if axis is None or (dtype != spec.dtype and not (dtype in FLOATS and spec.dtype == "float32")):
        raise DataError(
            f"the file takes {_described(value)}, and the data gives {spec}. One axis must count the examples, the "
            "others have an example's own shape, and the dtype must be the same. An input without such an axis is a "
            f"constant: give it with constants={{{value.name!r}: ...}}"
        )
    return Port(name=value.name, dtype=dtype, axis=axis, rank=len(spec.shape))


def _dynamic_axes(original: OriginalFile, examples: Examples) -> tuple[int, ...] | None:
    """The axis of each output that counts the examples; None if the file does not answer each as it does alone."""
    inputs = _batch(examples, COMPARED)
    try:
        together = original.run(inputs)
        alone = [original.run([each[row : row + 1] for each in inputs]) for row in range(COMPARED)]
    except Exception:  # noqa: BLE001 -- a file that does not take this batch raises whatever its operators raise
        return None
    axes = []
    for whole, *parts in zip(together, *alone):
        differing = [
            axis for axis in range(whole.ndim) if whole.shape[axis : axis + 1] != parts[0].shape[axis : axis + 1]
        ]
        if whole.ndim != parts[0].ndim or len(differing) != 1:
            return None
        if _difference(np.concatenate(parts, differing[0]), whole) > TOLERANCE:
            return None
        axes.append(differing[0])
    return tuple(axes)


def _fixed_axes(original: OriginalFile, examples: Examples, batch: int, file: OnnxFile) -> tuple[int, ...]:
    """The first axis of each output that is as long as the batch. Raises: TaskError if there is none."""
    try:
        results = original.run(_batch(examples, batch))
    except Exception as error:
        raise TaskError(
            f"{file.path} fails on {batch} examples of the data ({'; '.join(map(str, examples.layout))}): "
            f"{first_line(error)}. Check that the data holds what the file takes"
        ) from error
    for name, each in zip(original.output_names, results):
        if batch not in each.shape:
            raise TaskError(
                f"{file.path}: output {name!r} has shape {each.shape} for a batch of {batch}, and no axis that counts "
                "the examples. Cut the file before such outputs, with onnx.utils.extract_model"
            )
    return tuple(each.shape.index(batch) for each in results)


def _graph(
    model: ModelProto,
    original: OriginalFile,
    examples: Examples,
    fixed: dict[str, Array],
    batch: int,
    *,
    dynamic: bool,
) -> Graph:
    for name, value in fixed.items():
        bake(model, name, value)
    name_nodes(model)
    examples_first(model, original.inputs, original.outputs)
    inputs = _batch(examples, batch)
    outputs = original(*map(torch.from_numpy, inputs))
    flat = outputs.values() if isinstance(outputs, dict) else (outputs,)
    specs = [
        TensorSpec(name=name, shape=(None if dynamic else batch, *array.shape[1:]), dtype=array.dtype.name)
        for name, array in zip(
            (port.name for port in (*original.inputs, *original.outputs)), (*inputs, *(each.numpy() for each in flat))
        )
    ]
    schema = Schema(
        inputs=tuple(specs[: len(inputs)]),
        outputs=tuple(specs[len(inputs) :]),
        nesting="dict" if isinstance(outputs, dict) else "tensor",
    )
    return graph_of(model, schema, tuple(map(torch.from_numpy, inputs)))


def _check(graph: Graph, original: OriginalFile, file: OnnxFile) -> None:
    """Raise TaskError unless the graph computes on its example what the file computes."""
    expected = original(*graph.example)
    wanted = tuple(expected.values()) if isinstance(expected, dict) else (expected,)
    for spec, one, other in zip(graph.schema.outputs, graph(*graph.example), wanted, strict=True):
        change = _difference(one.numpy(), other.numpy())
        if change > TOLERANCE:
            raise TaskError(
                f"{file.path}: with its examples counted first, output {spec.name!r} differs from the file's own by "
                f"{change:.1e} of its scale. A model with randomness inside cannot be compared with itself"
            )


def _batch(examples: Examples, size: int) -> list[Array]:
    """The first examples, as many as that, repeated if there are fewer."""
    return [np.ascontiguousarray(each) for each in examples.take(np.arange(size) % len(examples)).inputs]


def _difference(one: Array, other: Array) -> float:
    """The greatest difference relative to the largest value; infinite where shapes or integers differ."""
    if one.shape != other.shape:
        return float("inf")
    if np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
        return 0.0
    if one.dtype.kind != "f":
        return float("inf")
    return float(np.nanmax(np.abs(one - other)) / max(float(np.nanmax(np.abs(other))), 1e-12))


def _dtype(value: ValueInfoProto) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name)


def _described(value: ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"{value.name}: {_dtype(value)}[{', '.join(str(each.dim_value or each.dim_param or '?') for each in dims)}]"
