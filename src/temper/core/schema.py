"""What goes into a model and comes out of it: names, shapes, dtypes and how the values nest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Outputs = Array | tuple[Array, ...] | dict[str, Array]
NESTINGS = ("tensor", "tuple", "dict")

LENGTH = "length"
"""What the one axis is called, besides the batch, whose size may differ from example to example."""

EXAMPLE_LENGTH = 16
"""The length of made-up inputs where nobody said another."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output: a name, a shape and NumPy's name of a dtype, such as `float32`.

    `shape` holds a number for a fixed size, None for the dynamic batch (in outputs, also for what depends on dynamic
    sizes in another way), and a name, such as "length", for any other dynamic size: equal names are equal sizes.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str

    @property
    def length_axis(self) -> int | None:
        """Which axis is as long as the example, or None if all examples have one size."""
        return self.shape.index(LENGTH) if LENGTH in self.shape else None

    def sized(self, batch: int, length: int | None = None) -> tuple[int, ...]:
        """The shape at that batch and length (`EXAMPLE_LENGTH` unless said otherwise)."""
        named = EXAMPLE_LENGTH if length is None else length
        return tuple(batch if size is None else named if isinstance(size, str) else size for size in self.shape)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the JSON form. Raises: KeyError, TypeError or ValueError if it is none: it may come from anywhere."""
        name, shape, dtype = fields["name"], fields["shape"], fields["dtype"]
        if not isinstance(name, str) or not isinstance(shape, list) or not isinstance(dtype, str):
            raise TypeError(f"a tensor is {{name, shape, dtype}}, and this one is not: {fields!r}")
        if not all(size is None or type(size) is int or (size and isinstance(size, str)) for size in shape):
            raise TypeError(f"the shape of {name!r} is {shape!r}, which are not all numbers, names or null")
        if np.dtype(dtype).name != dtype:
            raise ValueError(f"the dtype of {name!r} is {dtype!r}, which NumPy calls {np.dtype(dtype).name}")
        return cls(name=name, shape=tuple(shape), dtype=dtype)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('batch' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The flat inputs and outputs of a graph or artifact, and whether the outputs are one array, a tuple or a dict."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nesting: str

    @property
    def dynamic_batch(self) -> bool:
        return all(spec.shape and spec.shape[0] is None for spec in self.inputs)

    @property
    def dynamic_length(self) -> bool:
        """Whether examples may differ in the size of the axis called `length`."""
        return any(spec.length_axis is not None for spec in self.inputs)

    @property
    def batch(self) -> int | None:
        """The fixed batch, or None where it is dynamic."""
        size = self.inputs[0].shape[0] if self.inputs[0].shape else None
        return size if isinstance(size, int) and not self.dynamic_batch else None

    def nested(self, outputs: Sequence[Array]) -> Outputs:
        """The flat outputs as the original model would return them: an array, a tuple or a dict of arrays."""
        if self.nesting == "tensor":
            return outputs[0]
        if self.nesting == "tuple":
            return tuple(outputs)
        return {spec.name: output for spec, output in zip(self.outputs, outputs, strict=True)}

    def mismatch(self, arrays: Sequence[Array]) -> str | None:
        """What is wrong with these inputs, or None: count, dtype, rank, a size, batches or lengths that differ."""
        if len(arrays) != len(self.inputs):
            wanted = "; ".join(map(str, self.inputs))
            return f"{len(arrays)} inputs were given, and the model takes {len(self.inputs)} ({wanted})"
        for spec, array in zip(self.inputs, arrays):
            if not isinstance(array, np.ndarray):
                return f"input {spec.name!r} is a {type(array).__name__}, not a NumPy array"
            if array.dtype.name != spec.dtype:
                return f"input {spec.name!r} is {array.dtype}, and the model takes {spec}"
            if not _fits(array.shape, spec.shape):
                return f"input {spec.name!r} has shape {array.shape}, and the model takes {spec}"
        if self.dynamic_batch and len({array.shape[0] for array in arrays}) > 1:
            return f"the inputs disagree on the batch: {', '.join(str(array.shape) for array in arrays)}"
        named: dict[str, set[int]] = {}
        for spec, array in zip(self.inputs, arrays):
            for size, name in zip(array.shape, spec.shape):
                if isinstance(name, str):
                    named.setdefault(name, set()).add(size)
        for name, sizes in named.items():
            if len(sizes) > 1:
                return f"the inputs disagree on the {name}: {', '.join(str(array.shape) for array in arrays)}"
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "nesting": self.nesting,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read the JSON form. Raises: KeyError, TypeError or ValueError if it is none: it may come from anywhere."""
        inputs, outputs = (tuple(map(TensorSpec.from_json, fields[name])) for name in ("inputs", "outputs"))
        if not inputs or not outputs or fields["nesting"] not in NESTINGS:
            raise ValueError(f"a schema has inputs, outputs and a nesting of {', '.join(NESTINGS)}: {fields!r}")
        return cls(inputs=inputs, outputs=outputs, nesting=fields["nesting"])


def _fits(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    fixed = ((size, want) for size, want in zip(shape, wanted) if isinstance(want, int))
    return len(shape) == len(wanted) and all(size == want for size, want in fixed)
