"""One set of examples out of pieces: of one shape, concatenated; of different lengths, padded to the longest."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from temper.core.data import Examples
from temper.core.errors import DataError
from temper.core.lengths import IGNORED
from temper.core.schema import Array

REMEDY = "one axis may differ from example to example, and every input that carries it must have the same size there"


def joined(pieces: Sequence[Examples], part: str) -> Examples:
    """All examples of the pieces, each of which has one shape of its own; padded where those differ.

    Raises: DataError if pieces differ in more than the size of one shared axis: names, number, dtype, rank.
    """
    first = pieces[0]
    for number, piece in enumerate(pieces):
        if _form(piece) != _form(first):
            raise DataError(
                f"{part}: number {number} holds {_described(piece)}, but number 0 holds {_described(first)}; "
                "every item or batch must hold the same inputs, of one dtype and one number of axes"
            )
    if len(pieces) == 1:
        return first
    names = [spec.name for spec in first.layout]
    axes = tuple(
        _differing(f"{part}, input {name!r}", [piece.inputs[index] for piece in pieces])
        for index, name in enumerate(names)
    )
    inputs = tuple(_padded([piece.inputs[index] for piece in pieces], axis, 0) for index, axis in enumerate(axes))
    return Examples(
        inputs=inputs,
        names=first.names,
        targets=_joined_targets(pieces, part),
        lengths=_lengths(pieces, axes, part),
        axes=() if axes == (None,) * len(axes) else axes,
    )


def aligned(held: Mapping[str, Examples]) -> dict[str, Examples]:
    """The parts with the same inputs in one order, and with a dynamic length in all of them if one of them has that.

    Raises: DataError if they differ in number, names, dtype or shape beyond the length.
    """
    first, reference = next(iter(held.items()))
    ordered = {part: _ordered(examples, reference) for part, examples in held.items()}
    for part, examples in ordered.items():
        if (examples.names, _form(examples)[1:3]) != (reference.names, _form(reference)[1:3]):
            raise _differ(part, examples, first, reference)
    found = {examples.axes for examples in ordered.values() if examples.axes}
    if found:
        axes = max(found, key=lambda each: sum(axis is not None for axis in each))
        ordered = {part: _lengthened(examples, axes, part) for part, examples in ordered.items()}
    for part, examples in ordered.items():
        if examples.layout != ordered[first].layout:
            raise _differ(part, held[part], first, reference)
    return ordered


def _differ(part: str, examples: Examples, first: str, reference: Examples) -> DataError:
    return DataError(
        f"{part} and {first} differ in their inputs: {_layout(examples)} against {_layout(reference)}. All parts feed "
        f"the same model, so they must agree in number, names, shape and dtype; {REMEDY}"
    )


def _layout(examples: Examples) -> str:
    return f"{'; '.join(map(str, examples.layout))} (as a {examples.style})"


def _ordered(examples: Examples, reference: Examples) -> Examples:
    if not (reference.names and examples.names and set(examples.names) == set(reference.names)):
        return examples
    return examples.ordered(reference.names)


def _lengthened(examples: Examples, axes: tuple[int | None, ...], part: str) -> Examples:
    """The examples with these axes as their dynamic length, also where all of them happen to be equally long."""
    if examples.lengths is not None:
        return examples
    return replace(examples, axes=axes, lengths=_lengths([examples], axes, part))


def _lengths(pieces: Sequence[Examples], axes: Sequence[int | None], part: str) -> Array | None:
    """The length of each example, (examples,), or None where no axis differs."""
    dynamic = [index for index, axis in enumerate(axes) if axis is not None]
    if not dynamic:
        return None
    names = [spec.name for spec in pieces[0].layout]
    lengths = []
    for number, piece in enumerate(pieces):
        sizes = {index: piece.inputs[index].shape[int(axes[index] or 0)] for index in dynamic}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{names[index]!r} has {size}" for index, size in sizes.items())
            raise DataError(f"{part}, number {number}: the inputs disagree on the length: {found}; {REMEDY}")
        if not min(sizes.values()):
            raise DataError(f"{part}, number {number}: has length 0. Leave empty examples out")
        lengths.append(np.full(len(piece), sizes[dynamic[0]]))
    return np.concatenate(lengths)


def _joined_targets(pieces: Sequence[Examples], part: str) -> Array | None:
    """The targets of all pieces; where they differ along an axis, padded with -100, for which integers get a sign."""
    arrays = [piece.targets for piece in pieces if piece.targets is not None]
    if not arrays:
        return None
    axis = _differing(f"{part}, targets", arrays)
    if axis is not None and arrays[0].dtype.kind in "bu":
        arrays = [array.astype(np.int64) for array in arrays]
    return _padded(arrays, axis, IGNORED)


def _differing(what: str, arrays: Sequence[Array]) -> int | None:
    """The axis along which arrays of one rank differ in size, or None."""
    shapes = np.array([array.shape[1:] for array in arrays]).reshape(len(arrays), -1)
    axes = np.flatnonzero((shapes != shapes[:1]).any(axis=0)) + 1
    if len(axes) > 1:
        number = int(np.flatnonzero((shapes != shapes[:1]).any(axis=1))[0])
        raise DataError(
            f"{what}: number {number} has shape (batch, {', '.join(map(str, shapes[number]))}), but number 0 has "
            f"(batch, {', '.join(map(str, shapes[0]))}): they differ in {len(axes)} axes, and {REMEDY}. Pad, crop or "
            "resize the others"
        )
    return int(axes[0]) if len(axes) else None


def _padded(arrays: Sequence[Array], axis: int | None, value: int) -> Array:
    """The arrays behind each other on the first axis; those that are shorter on `axis` are filled up with `value`."""
    if axis is None:
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    shape = list(arrays[0].shape)
    shape[0], shape[axis] = sum(map(len, arrays)), max(array.shape[axis] for array in arrays)
    whole = np.full(shape, value, dtype=np.result_type(*{array.dtype for array in arrays}))
    start = 0
    for array in arrays:
        inside: Any = (slice(start, start + len(array)), *map(slice, array.shape[1:]))
        whole[inside] = array
        start += len(array)
    return whole


def _form(piece: Examples) -> tuple[Any, ...]:
    targets = None if piece.targets is None else piece.targets.ndim
    inputs = [(array.dtype, array.ndim) for array in piece.inputs]
    return piece.names, len(piece.inputs), inputs, targets


def _described(piece: Examples) -> str:
    targets = "no targets" if piece.targets is None else f"targets of shape (batch, *{piece.targets.shape[1:]})"
    return f"{', '.join(map(str, piece.layout))} and {targets}"
