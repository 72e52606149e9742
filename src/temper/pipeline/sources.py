"""From a source of data to examples in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, Subset

from temper.core.data import Examples, Source
from temper.core.errors import DataError
from temper.core.schema import Array

LABELS = ("labels", "label", "targets", "target")
"""The keys under which a dict keeps its targets."""

FORMS = "arrays, (inputs, targets), a dict of arrays, a dataset, or an iterable of batches"


def read(source: Source, part: str) -> tuple[Examples, tuple[str, ...]]:
    """All examples of the source, and notes on what was converted.

    Raises: DataError naming the part and the item or batch that cannot be read or differs from the first.
    """
    if is_arrays(source):
        pieces = [_batch(source, part)]
    elif is_sized(source):
        pieces = [_item(source, index, part) for index in range(len(source))]
    else:
        pieces = list(_iterated(source, part))
    if not pieces or not len(pieces[0]):
        raise DataError(
            f"{part}: the source holds no examples. Give at least one; an iterator that was read before is empty, so "
            "give what makes it (a list, a DataLoader) instead"
        )
    return _as_float32(_joined(pieces, part), part)


def is_arrays(source: Source) -> bool:
    """Whether the source is an array, a tuple or dict of arrays, or a list of two, as opposed to a dataset."""
    if isinstance(source, list):
        return len(source) == 2 and is_array(source[1]) and not hasattr(source[0], "__next__")
    return is_array(source) or isinstance(source, (tuple, Mapping))


def is_array(value: object) -> bool:
    """Whether NumPy can take the value as it is: NumPy, torch, pandas and h5py arrays."""
    return hasattr(value, "__array__")


def is_sized(source: Source) -> bool:
    """Whether the source is a dataset whose items are read by their number."""
    sized = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return sized and not isinstance(source, (str, bytes, list, IterableDataset))


def _item(source: Source, index: int, part: str) -> Examples:
    """One item of a sized dataset. Raises: DataError naming the item if it cannot be read."""
    where = f"{part}, item {index}"
    try:
        item = source[index]
    except Exception as error:
        raise DataError(
            f"{where}: cannot be read: {type(error).__name__}: {error}. A dataset must return an item for each number "
            "from 0 to its length"
        ) from error
    return _example(item, where)


def subset(source: Source, indices: NDArray[Any]) -> Source:
    """The source with only these examples: arrays in the form in which they came, a dataset as a `Subset`."""
    if isinstance(source, Mapping):
        return {key: subset(value, indices) for key, value in source.items()}
    if isinstance(source, (tuple, list)):
        return tuple(subset(value, indices) for value in source)
    if isinstance(source, torch.Tensor):
        return source[torch.from_numpy(indices)]
    return np.asarray(source)[indices] if is_array(source) else Subset(source, indices.tolist())


def _iterated(source: Source, part: str) -> Iterator[Examples]:
    if isinstance(source, (str, bytes)) or not isinstance(source, Iterable):
        raise DataError(f"{part}: an object of type {type(source).__name__} is no source of data; give {FORMS}")
    one_by_one = isinstance(source, IterableDataset)
    form: Callable[[Any, str], Examples] = _example if one_by_one else _batch
    unit = "item" if one_by_one else "batch"
    iterator, number = iter(source), 0
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(
                f"{part}, {unit} {number}: cannot be read: {type(error).__name__}: {error}. Mend the source, or leave "
                f"that {unit} out"
            ) from error
        yield form(item, f"{part}, {unit} {number}")
        number += 1


def _batch(value: Any, where: str) -> Examples:
    """Examples from one value that holds several, with the batch as the first axis."""
    inputs, targets = _separated(value, where)
    arrays, names = _inputs(inputs, where)
    labels = None if targets is None else _to_array(targets, f"{where}, targets")
    everything = (*arrays, *(() if labels is None else (labels,)))
    lengths = {len(array) if array.ndim else -1 for array in everything}
    if len(lengths) > 1 or -1 in lengths:
        shapes = ", ".join(str(array.shape) for array in arrays)
        beside = "" if labels is None else f" and targets of shape {labels.shape}"
        raise DataError(
            f"{where}: inputs of shape {shapes}{beside} do not hold equally many examples; the first axis of every "
            "array must count the examples, in the same order"
        )
    return Examples(inputs=arrays, names=names, targets=labels)


def _example(value: Any, where: str) -> Examples:
    """Examples that hold one item, to which a batch axis is added."""
    inputs, targets = _separated(value, where)
    arrays, names = _inputs(inputs, where)
    labels = None if targets is None else _to_array(targets, f"{where}, targets")[None]
    return Examples(inputs=tuple(array[None] for array in arrays), names=names, targets=labels)


def _separated(value: Any, where: str) -> tuple[Any, Any]:
    """The inputs and the targets, or None for those."""
    if isinstance(value, Mapping):
        found = [key for key in LABELS if key in value]
        if len(found) > 1:
            raise DataError(f"{where}: holds targets under both {' and '.join(map(repr, found))}; keep one of them")
        return {key: held for key, held in value.items() if key not in found}, value[found[0]] if found else None
    if isinstance(value, (tuple, list)):
        if len(value) not in (1, 2):
            raise DataError(
                f"{where}: a {type(value).__name__} of {len(value)} values is ambiguous; write (inputs, targets), "
                "where inputs may be a tuple or a dict: ((a, b), targets)"
            )
        return value[0], value[1] if len(value) == 2 else None
    return value, None


def _inputs(value: Any, where: str) -> tuple[tuple[Array, ...], tuple[str, ...] | None]:
    if isinstance(value, Mapping):
        if not value:
            raise DataError(f"{where}: holds no inputs; give at least one array beside the targets")
        return tuple(_to_array(held, f"{where}, {key!r}") for key, held in value.items()), tuple(map(str, value))
    several = isinstance(value, tuple) or (isinstance(value, list) and any(map(is_array, value)))
    if several and len(value):
        return tuple(_to_array(held, f"{where}, input {number}") for number, held in enumerate(value)), None
    return (_to_array(value, f"{where}, inputs"),), None


def _to_array(value: Any, where: str) -> Array:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where}: {type(value).__name__} is not an array: {error}. Give numbers of one shape"
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: {type(value).__name__} of dtype {array.dtype} is not numeric; convert it to numbers (a tensor, "
            "class numbers, token numbers), or leave it out"
        )
    return array


def _joined(pieces: Sequence[Examples], part: str) -> Examples:
    first = pieces[0]
    form = _form(first)
    for number, piece in enumerate(pieces):
        if _form(piece) != form:
            raise DataError(
                f"{part}: number {number} holds {_described(piece)}, but number 0 holds {_described(first)}; "
                "every item or batch must hold the same inputs, of one shape beyond the batch and one dtype "
                "(pad or crop to one size)"
            )
    if len(pieces) == 1:
        return first
    inputs = tuple(np.concatenate(columns) for columns in zip(*(piece.inputs for piece in pieces)))
    labels = [piece.targets for piece in pieces if piece.targets is not None]
    return Examples(inputs=inputs, names=first.names, targets=np.concatenate(labels) if labels else None)


def _form(piece: Examples) -> tuple[Any, ...]:
    targets = None if piece.targets is None else piece.targets.shape[1:]
    return piece.names, [(array.dtype, array.shape[1:]) for array in piece.inputs], targets


def _described(piece: Examples) -> str:
    targets = "no targets" if piece.targets is None else f"targets of shape (batch, *{piece.targets.shape[1:]})"
    return f"{', '.join(map(str, piece.layout))} and {targets}"


def _as_float32(examples: Examples, part: str) -> tuple[Examples, tuple[str, ...]]:
    """Models compute in float32, so inputs of any other float become that; an overflow shows up as infinity."""
    converted = {str(array.dtype) for array in examples.inputs if array.dtype.kind == "f"} - {"float32"}
    if not converted:
        return examples, ()
    with np.errstate(over="ignore"):
        inputs = tuple(array.astype(np.float32) if array.dtype.kind == "f" else array for array in examples.inputs)
    note = f"The {part} inputs were converted from {', '.join(sorted(converted))} to float32."
    return Examples(inputs=inputs, names=examples.names, targets=examples.targets), (note,)
