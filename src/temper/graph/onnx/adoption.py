"""From an ONNX file and examples to a graph: the file's inputs matched with the data's, the examples counted first.

What is changed in the file is little, and checked: inputs that are constant are written into it, weights are no longer
inputs, and an input or output that counts the examples along another axis is transposed. (The state of a recurrent
model often has the shape (layers, batch, width).)
"""

from collections.abc import Sequence
from dataclasses import replace
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
from temper.core.goal import Conditions
from temper.core.graph import Graph
from temper.core.lengths import probing
from temper.core.schema import LENGTH, Array, Schema, TensorSpec
from temper.core.task import OnnxFile
from temper.graph.onnx.inputs import constant_of, declared_batch, described, input_port, matched
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


def adopt(file: OnnxFile, examples: Examples, conditions: Conditions) -> tuple[nn.Module, Graph]:
    """The file itself as a module, and its graph: with a dynamic batch if the file allows it, else with that measured.

    Where the examples differ in length, so may the graph's inputs: the file is run at the shortest and the longest of
    the examples, and at the length that is to be measured.

    Raises: TaskError if the file cannot be read or run; DataError if the data does not fit its inputs, or differs in a
    length that the file fixes; UsageError if it has another, fixed batch.
    """
    model = _read(file)
    weights_are_no_inputs(model)
    fixed = {name: constant_of(model, file, name, value) for name, value in file.constants.items()}
    free = [each for each in model.graph.input if each.name not in fixed]
    ordered = matched(free, examples, file)
    ports = [input_port(each, spec, conditions.batch) for each, spec in zip(free, ordered.layout, strict=True)]
    original = OriginalFile(file, ports, fixed)
    lengths = _lengths(ordered, conditions.length)
    stated = _stated_batch(free, ports, ordered, conditions.batch, file)
    axes = None if stated or not file.dynamic_batch else _dynamic_axes(original, ordered, lengths)
    dynamic = axes is not None
    axes = _fixed_axes(original, ordered, lengths, conditions.batch, file) if axes is None else axes
    size = EXAMPLE_BATCH if dynamic else conditions.batch
    calls = [_batch(ordered, size, length) for length in lengths]
    original.place_outputs(calls[0], axes)
    schema = _schema(original, ordered, calls, lengths, None if dynamic else size)
    graph = _graph(model, original, schema, calls[0], fixed)
    for call in calls:
        _check(graph, original, tuple(map(torch.from_numpy, call)), file)
    return original, graph


def _stated_batch(
    free: Sequence[ValueInfoProto], ports: Sequence[Port], examples: Examples, batch: int, file: OnnxFile
) -> bool:
    """Whether the file states the batch, which is then that to be measured. Raises: UsageError or DataError if not."""
    batches = {declared_batch(each, port) for each, port in zip(free, ports)}
    sizes = {each for each in batches if each is not None}
    if len(batches) == 1 and sizes - {batch}:
        (size,) = sizes
        raise UsageError(
            f"{file.path} takes a batch of {size} only, and a batch of {batch} is to be measured: ask for it with "
            f"--batch {size}"
        )
    if sizes - {batch}:
        raise DataError(
            f"{file.path} takes {'; '.join(map(described, free))}, and the data holds "
            f"{'; '.join(map(str, examples.layout))}: no batch of examples fits all of these inputs"
        )
    return bool(sizes)


def _lengths(examples: Examples, measured: int | None) -> list[int | None]:
    """The lengths that the file is tried at, at least two, a middling one first; [None] where examples have one shape.

    Two lengths are needed to see which sizes of the outputs follow them.
    """
    if examples.lengths is None:
        return [None]
    found = probing(examples.lengths, measured)
    return [*found, found[0] - 1] if len(found) == 1 else [*found]


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


def _dynamic_axes(original: OriginalFile, examples: Examples, lengths: Sequence[int | None]) -> tuple[int, ...] | None:
    """The axis of each output that counts the examples; None if the file does not answer each as it does alone."""
    found = {_axes_at(original, _batch(examples, COMPARED, length)) for length in lengths}
    return found.pop() if len(found) == 1 else None


def _axes_at(original: OriginalFile, inputs: Sequence[Array]) -> tuple[int, ...] | None:
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


def _fixed_axes(
    original: OriginalFile, examples: Examples, lengths: Sequence[int | None], batch: int, file: OnnxFile
) -> tuple[int, ...]:
    """The first axis of each output that is as long as the batch. Raises: TaskError if there is none, or it fails."""
    results: list[Array] = []
    for length in reversed(lengths):  # what is left are the results at the first
        try:
            results = original.run(_batch(examples, batch, length))
        except Exception as error:
            at = "" if length is None else f" at length {length}"
            remedy = (
                "Check that the data holds what the file takes"
                if length is None
                else "A file that computes at one length only, though it leaves the axis open, is given examples "
                "padded to that length, with the mask that it takes, or is exported again with that axis dynamic"
            )
            raise TaskError(
                f"{file.path} fails on {batch} examples of the data{at} ({'; '.join(map(str, examples.layout))}): "
                f"{first_line(error)}. {remedy}"
            ) from error
    for name, each in zip(original.output_names, results):
        if batch not in each.shape:
            raise TaskError(
                f"{file.path}: output {name!r} has shape {each.shape} for a batch of {batch}, and no axis that counts "
                "the examples. Cut the file before such outputs, with onnx.utils.extract_model"
            )
    return tuple(each.shape.index(batch) for each in results)


def _schema(
    original: OriginalFile,
    examples: Examples,
    calls: Sequence[Sequence[Array]],
    lengths: Sequence[int | None],
    batch: int | None,
) -> Schema:
    """Names, dtypes and sizes, the examples first: sizes of outputs that differ between the calls are dynamic."""
    answers = [original(*map(torch.from_numpy, call)) for call in calls]
    flat = [tuple(each.values()) if isinstance(each, dict) else (each,) for each in answers]
    outputs = tuple(
        TensorSpec(
            name=port.name,
            shape=(batch, *(_size(sizes, lengths) for sizes in zip(*(each.shape[1:] for each in column)))),
            dtype=column[0].numpy().dtype.name,
        )
        for port, column in zip(original.outputs, zip(*flat))
    )
    return Schema(
        inputs=tuple(replace(spec, shape=(batch, *spec.shape[1:])) for spec in examples.layout),
        outputs=outputs,
        nesting="dict" if isinstance(answers[0], dict) else "tensor",
    )


def _size(sizes: Sequence[int], lengths: Sequence[int | None]) -> int | str | None:
    """What a size is that takes these values at those lengths: fixed, the length, or dynamic in another way."""
    if len(set(sizes)) == 1:
        return sizes[0]
    return LENGTH if tuple(sizes) == tuple(lengths) else None


def _graph(
    model: ModelProto, original: OriginalFile, schema: Schema, example: Sequence[Array], fixed: dict[str, Array]
) -> Graph:
    for name, value in fixed.items():
        bake(model, name, value)
    name_nodes(model)
    examples_first(model, original.inputs, original.outputs)
    return graph_of(model, schema, tuple(map(torch.from_numpy, example)))


def _check(graph: Graph, original: OriginalFile, call: tuple[Tensor, ...], file: OnnxFile) -> None:
    """Raise TaskError unless the graph computes on these inputs what the file computes."""
    expected = original(*call)
    wanted = tuple(expected.values()) if isinstance(expected, dict) else (expected,)
    for spec, one, other in zip(graph.schema.outputs, graph(*call), wanted, strict=True):
        change = _difference(one.numpy(), other.numpy())
        if change > TOLERANCE:
            raise TaskError(
                f"{file.path}: with its examples counted first, output {spec.name!r} differs from the file's own by "
                f"{change:.1e} of its scale. A model with randomness inside cannot be compared with itself"
            )


def _batch(examples: Examples, size: int, length: int | None) -> list[Array]:
    """The first examples, as many as that, repeated if there are fewer; each cut or repeated to the length, if any."""
    rows = np.arange(size) % len(examples)
    return [
        *map(np.ascontiguousarray, examples.take(rows).inputs if length is None else examples.at_length(rows, length))
    ]


def _difference(one: Array, other: Array) -> float:
    """The greatest difference relative to the largest value; infinite where shapes or integers differ."""
    if one.shape != other.shape:
        return float("inf")
    if np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
        return 0.0
    if one.dtype.kind != "f":
        return float("inf")
    return float(np.nanmax(np.abs(one - other)) / max(float(np.nanmax(np.abs(other))), 1e-12))
