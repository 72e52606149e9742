"""Examples of different lengths: kept padded to the longest, and run in groups of one length, cut to it."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper.core.schema import Array, Schema

Positions = NDArray[np.int64]

IGNORED = -100
"""What per-token targets are padded with, and what metrics do not count (as `torch.nn.functional.cross_entropy`)."""

LEAST_PROBE = 2
"""The least length that `torch.export` does not take for a constant."""


def groups(lengths: Array | None, count: int, batch: int) -> Iterator[Positions]:
    """The positions 0..count in groups of at most `batch` that have one length each: `lengths` (count,), or None.

    Shorter ones come first; among equal lengths, and where there are no lengths, the order stays.
    """
    order = np.arange(count) if lengths is None else np.argsort(lengths, kind="stable")
    borders = [0, count] if lengths is None else [0, *(np.flatnonzero(np.diff(lengths[order])) + 1).tolist(), count]
    for first, stop in pairwise(borders):
        for start in range(first, stop, batch):
            yield order[start : min(start + batch, stop)]


def probing(lengths: Array, measured: int | None) -> list[int]:
    """The lengths that a model must follow: a middling one, then the shortest, the longest and that to be measured."""
    order = np.sort(lengths)
    middle = max(LEAST_PROBE, int(order[len(order) // 2]))
    ends = {int(order[0]), int(order[-1])} | ({measured} if measured else set())
    return [middle, *sorted(ends - {middle})]


def cut(array: Array, axis: int | None, length: int) -> Array:
    """The array (examples, ...) without what lies behind that length on the axis: padding, unless axis is None."""
    return array if axis is None else array[(slice(None),) * axis + (slice(length),)]


def stretched(array: Array, axis: int | None, length: int) -> Array:
    """The array cut along the axis, or repeated, until it is exactly that long; as it is where axis is None."""
    return array if axis is None else np.take(array, np.arange(length) % array.shape[axis], axis=axis)


def at_length(singles: Sequence[Sequence[Array]], axes: Sequence[int | None], length: int) -> tuple[Array, ...]:
    """Examples, each the inputs of one, (1, ...), as one batch in which all are cut or repeated to that length."""
    return tuple(
        np.ascontiguousarray(np.concatenate([stretched(array, axis, length) for array in column]))
        for column, axis in zip(zip(*singles), axes)
    )


def separated(schema: Schema, arrays: Sequence[Array]) -> tuple[tuple[Array, ...], Array | None]:
    """Stored examples as inputs and lengths: those stand behind the inputs of a schema whose length is dynamic."""
    count = len(schema.inputs)
    return tuple(arrays[:count]), arrays[count] if len(arrays) > count else None


def batches(schema: Schema, arrays: Sequence[Array], batch: int) -> Iterator[tuple[Positions, tuple[Array, ...]]]:
    """Stored examples in groups of at most `batch` and of one length each: positions, and inputs cut to that length.

    `arrays` holds one array an input, (examples, ...), and behind them, where lengths differ, those (examples,).
    """
    inputs, lengths = separated(schema, arrays)
    for rows in groups(lengths, len(inputs[0]), batch):
        yield rows, inputs_at(schema, inputs, lengths, rows)


def inputs_at(schema: Schema, inputs: Sequence[Array], lengths: Array | None, rows: Positions) -> tuple[Array, ...]:
    """The inputs of some examples of one length, cut to it, in memory of their own."""
    if lengths is None:
        return tuple(np.ascontiguousarray(array[rows]) for array in inputs)
    length = int(lengths[rows[0]])
    axes = [spec.length_axis for spec in schema.inputs]
    return tuple(np.ascontiguousarray(cut(array, axis, length)[rows]) for array, axis in zip(inputs, axes))


def gathered(positions: Sequence[Positions], chunks: Sequence[Sequence[Array]]) -> tuple[Array, ...]:
    """The outputs of groups as one array an output, (examples, ...), in the order of the positions.

    Where groups differ in the size of an axis, what is shorter is padded with zeros.
    """
    return tuple(_placed(places, parts) for places, parts in _columns(positions, chunks))


def masked(positions: Sequence[Positions], chunks: Sequence[Sequence[Array]]) -> tuple[Array, ...]:
    """The same, in which padding, where there is any, is masked (`numpy.ma`): it counts in no sum and no mean."""
    whole = []
    for places, parts in _columns(positions, chunks):
        there = _placed(places, [np.ones(part.shape, bool) for part in parts])
        values = _placed(places, parts)
        whole.append(values if there.all() else np.ma.masked_array(values, ~there))
    return tuple(whole)


def _columns(
    positions: Sequence[Positions], chunks: Sequence[Sequence[Array]]
) -> Iterator[tuple[list[Positions], tuple[Array, ...]]]:
    """For each output, where the rows of its parts belong, and the parts."""
    rows = np.concatenate(positions)
    rank = np.empty(len(rows), dtype=np.int64)
    rank[np.argsort(rows, kind="stable")] = np.arange(len(rows))
    places = np.split(rank, np.cumsum([len(each) for each in positions])[:-1])
    for parts in zip(*chunks, strict=True):
        yield places, parts


def _placed(places: Sequence[Positions], parts: Sequence[Array]) -> Array:
    largest = tuple(map(max, zip(*(part.shape[1:] for part in parts))))
    whole = np.zeros((sum(map(len, places)), *largest), dtype=parts[0].dtype)
    for place, part in zip(places, parts):
        inside: Any = (place, *map(slice, part.shape[1:]))
        whole[inside] = part
    return whole
