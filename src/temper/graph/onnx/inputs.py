"""The inputs of an ONNX file: which array of the data each takes, and along which axis it counts the examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto

from temper.core.data import Examples
from temper.core.errors import DataError, TaskError
from temper.core.schema import LENGTH, Array, TensorSpec
from temper.core.task import OnnxFile
from temper.graph.onnx.surgery import FLOATS, Port


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
            f"{file.path} takes {'; '.join(map(described, free))}, and the data holds "
            f"{'; '.join(map(str, examples.layout))}. Give a dict of arrays by these names, or a tuple in their "
            f"order{hint}"
        )
    return examples.ordered(names)


def constant_of(model: ModelProto, file: OnnxFile, name: str, value: Any) -> Array:
    """The value of an input that is the same in every call. Raises: TaskError if there is none, or it does not fit."""
    found = next((each for each in model.graph.input if each.name == name), None)
    if found is None:
        names = ", ".join(each.name for each in model.graph.input)
        raise TaskError(f"constants: {file.path} has no input called {name!r}; its inputs are {names}")
    array = np.asarray(value).astype(_dtype(found))
    sizes = declared(found)
    if len(sizes) != array.ndim or any(want not in (None, size) for want, size in zip(sizes, array.shape)):
        raise TaskError(f"constants: {name!r} has shape {array.shape}, and {file.path} takes {described(found)}")
    return array


def input_port(value: ValueInfoProto, spec: TensorSpec, batch: int) -> Port:
    """How an input is fed. Raises: DataError if the data's shape or dtype does not fit it."""
    dtype, sizes = _dtype(value), declared(value)
    known = value.type.tensor_type.HasField("shape")
    axis = batch_axis(sizes, spec.shape[1:], batch, _called_batch(value)) if known else 0
    if known and axis is not None and spec.length_axis is not None:
        _check_open(value, [*sizes[:axis], *sizes[axis + 1 :]][spec.length_axis - 1], spec)
    if axis is None or (dtype != spec.dtype and not (dtype in FLOATS and spec.dtype == "float32")):
        raise DataError(
            f"the file takes {described(value)}, and the data gives {spec}. One axis must count the examples, the "
            "others have an example's own shape, and the dtype must be the same. An input without such an axis is a "
            f"constant: give it with constants={{{value.name!r}: ...}}"
        )
    return Port(name=value.name, dtype=dtype, axis=axis, rank=len(spec.shape))


def _check_open(value: ValueInfoProto, size: int | None, spec: TensorSpec) -> None:
    """Raise DataError if the file states a size for the axis in which the examples differ."""
    if size is not None:
        raise DataError(
            f"the examples differ in length ({spec}), and the file takes {described(value)}: {size} and no other "
            f"length. Give the examples padded to {size}, with the mask that the file takes if it takes one, or export "
            "the file again with that axis dynamic"
        )


def batch_axis(
    sizes: Sequence[int | None], example: Sequence[int | str | None], batch: int, called: int | None = None
) -> int | None:
    """The axis of an input that counts the examples, so that the others fit an example's own shape; None if none does.

    Where several do, the one that the file calls so comes first (recurrent models often count steps before examples),
    then one whose size is open, then one of the batch's size. A dynamic length fits any size, so that who asks can say
    that it is fixed; the first axis then counts the examples, unless that makes the length one of 1.
    """
    others = {axis: (*sizes[:axis], *sizes[axis + 1 :]) for axis in range(len(sizes))}
    fitting = [
        axis
        for axis, rest in others.items()
        if len(rest) == len(example)
        and all(want in (None, size) or size == LENGTH for want, size in zip(rest, example))
    ]
    if LENGTH in example:
        place = example.index(LENGTH)
        return min(fitting, key=lambda axis: (axis != called, others[axis][place] == 1, axis), default=None)
    return min(
        fitting, key=lambda axis: (axis != called, sizes[axis] is not None, sizes[axis] != batch, axis), default=None
    )


def _called_batch(value: ValueInfoProto) -> int | None:
    """The axis whose open size the file calls a batch, if it does."""
    names = [each.dim_param.lower() for each in value.type.tensor_type.shape.dim]
    return next((axis for axis, name in enumerate(names) if "batch" in name), None)


def declared_batch(value: ValueInfoProto, port: Port) -> int | None:
    """The batch that the file states for an input, None where it leaves it open."""
    sizes = declared(value)
    return sizes[port.axis] if sizes else None


def declared(value: ValueInfoProto) -> list[int | None]:
    """The sizes that the file states for an input, None where it leaves them open."""
    return [each.dim_value if each.HasField("dim_value") else None for each in value.type.tensor_type.shape.dim]


def _dtype(value: ValueInfoProto) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name)


def described(value: ValueInfoProto) -> str:
    """An input in words, with the names that the file gives to open sizes."""
    dims = value.type.tensor_type.shape.dim
    return f"{value.name}: {_dtype(value)}[{', '.join(str(each.dim_value or each.dim_param or '?') for each in dims)}]"
