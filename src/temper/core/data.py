"""Data: what the author of a task gives, and the disjoint parts that it becomes."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import numpy as np

from temper.core.errors import DataError
from temper.core.lengths import at_length, cut
from temper.core.schema import LENGTH, Array, TensorSpec

Source = Any
"""Where examples come from; `Data` lists what is accepted."""

Indices = Array
Style = Literal["tensor", "tuple", "dict"]


@dataclass(frozen=True, eq=False)
class Data:
    """The examples of a task: one source that temper splits, or up to four sources, one a part.

    `calibration` sets the ranges of quantizers, `training` recovers accuracy, `selection` is what the search looks
    at, `proof` is opened once, to judge. A source is one of:

    - arrays (NumPy, torch), each (examples, ...): the inputs alone, or the pair `(inputs, targets)`, where inputs are
      one array, a tuple of arrays or a dict of arrays; a dict keeps its targets under `labels`, `label`, `targets` or
      `target`;
    - the same with lists in place of arrays, whose elements differ in length; a list that stands alone is read as
      batches, so give it a name in a dict: `{"tokens": sentences}`;
    - a sized dataset (`__len__` and `__getitem__`) whose items are such values for one example;
    - a `DataLoader`, or any other iterable, of such values for one batch; it is read once, in order.

    Examples may differ in the size of one axis, such as the number of tokens, which all inputs that carry it share.
    The model is run on each example at its own length. Where targets differ in the size of an axis, they are padded
    with -100, which metrics do not count.

    Raises: DataError if `everything` stands beside a named part, or nothing is given to judge on.
    """

    everything: Source = None
    _: KW_ONLY
    calibration: Source = None
    training: Source = None
    selection: Source = None
    proof: Source = None

    def __post_init__(self) -> None:
        named = [name for name in ("calibration", "training", "selection", "proof") if getattr(self, name) is not None]
        if self.everything is not None and named:
            raise DataError(
                f"Data was given one source to split and also {', '.join(named)}. Give either one source, which temper "
                "splits, or the parts by name"
            )
        if self.everything is None and self.selection is None and self.proof is None:
            held = f"only {' and '.join(named)}" if named else "no source"
            raise DataError(
                f"Data was given {held}, and nothing to judge a model on. Give examples that the model was not trained "
                "on, such as Data(proof=test_set, training=training_set), or Data(examples) to have them split"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Examples in memory: `inputs` and `targets` hold one array each, (examples, ...).

    `names` are the keys of inputs that were given as a dict and are passed to the model by keyword, else None.
    Floating-point inputs are float32; targets keep their dtype.

    Where examples differ in length, `lengths` holds that of each, (examples,), and `axes` says for each input which
    of its axes is that long, or None. Inputs are then padded to the longest with zeros, which no model ever sees, and
    targets with -100, which no metric counts.
    """

    inputs: tuple[Array, ...]
    names: tuple[str, ...] | None = None
    targets: Array | None = None
    lengths: Array | None = None
    axes: tuple[int | None, ...] = ()

    @property
    def style(self) -> Style:
        """How one call passes the inputs: a single tensor, several by position, or a dict by keyword."""
        if self.names is not None:
            return "dict"
        return "tensor" if len(self.inputs) == 1 else "tuple"

    @property
    def layout(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape beyond the batch of each input; equal layouts can be fed to the same model."""
        names = self.names or tuple(f"input_{number}" for number in range(len(self.inputs)))
        return tuple(
            TensorSpec(name=name, shape=(None, *_sizes(array, axis)[1:]), dtype=array.dtype.name)
            for name, array, axis in zip(names, self.inputs, self.length_axes, strict=True)
        )

    @property
    def length_axes(self) -> tuple[int | None, ...]:
        """For each input, which of its axes is as long as the example; None where all have one size."""
        return self.axes or (None,) * len(self.inputs)

    @property
    def stored(self) -> tuple[Array, ...]:
        """What other processes and techniques get: the inputs, and behind them the lengths where those differ."""
        return self.inputs if self.lengths is None else (*self.inputs, self.lengths)

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, indices: Indices) -> "Examples":
        """The examples at these positions, (count,) integers, in this order, as copies."""
        return replace(
            self,
            inputs=tuple(array[indices] for array in self.inputs),
            targets=None if self.targets is None else self.targets[indices],
            lengths=None if self.lengths is None else self.lengths[indices],
        )

    def ordered(self, names: Sequence[str]) -> "Examples":
        """The examples with their inputs under these names and in this order; those given without names have it."""
        given = tuple(self.names or names)
        places = [given.index(name) for name in names]
        return replace(
            self,
            inputs=tuple(self.inputs[place] for place in places),
            names=tuple(names),
            axes=tuple(self.axes[place] for place in places) if self.axes else (),
        )

    def inputs_at(self, indices: Indices) -> tuple[Array, ...]:
        """The inputs of the examples at these positions, which have one length, cut to it."""
        if self.lengths is None:
            return tuple(array[indices] for array in self.inputs)
        length = int(self.lengths[indices[0]])
        return tuple(cut(array, axis, length)[indices] for array, axis in zip(self.inputs, self.length_axes))

    def at_length(self, indices: Indices, length: int) -> tuple[Array, ...]:
        """The inputs of the examples at these positions as one batch, each cut or repeated to that length."""
        singles = [self.inputs_at(np.array([index])) for index in indices]
        return at_length(singles, self.length_axes, length)


def _sizes(array: Array, axis: int | None) -> tuple[int | str, ...]:
    return tuple(LENGTH if index == axis else size for index, size in enumerate(array.shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The disjoint parts of the data, in memory but for `training`, which stays the source that was given.

    `kept` are the positions (count,) of the training examples that stand in no other part, which alone may be trained
    on; None where that could not be checked, or is true of all. `marks` (examples,) tell training examples apart,
    where those can be read by number and stay the same. `notes` are sentences that say how the data was split,
    what was dropped and what could not be checked.
    """

    calibration: Examples | None
    selection: Examples
    proof: Examples
    training: Source = None
    kept: Indices | None = None
    marks: Array | None = None
    notes: tuple[str, ...] = ()
