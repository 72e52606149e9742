"""From a source of data to examples in memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, Subset

from temper.core.data import Examples, Source
from temper.core.errors import DataError
from temper.core.schema import Array
from temper.pipeline.joined import joined

LABELS = ("labels", "label", "targets", "target")
"""The keys under which a dict keeps its targets."""

Column = Array | list[Array]
"""One input of all examples: an array (examples, ...), or one array an example where their shapes differ."""

FORMS = "arrays, (inputs, targets), a dict of arrays, a dataset, or an iterable of batches"


def read(source: Source, part: str) -> tuple[Examples, tuple[str, ...]]:
    """All examples of the source, and notes on what was converted.

    Raises: DataError naming the part and the item or batch that cannot be read or differs from the first.
    """
    if is_arrays(source):
        pieces = _batch(source, part)
    elif is_sized(source):
        pieces = [_item(source, index, part) for index in range(len(source))]
    else:
        pieces = list(_iterated(source, part))
    if not any(map(len, pieces)):
        raise DataError(
            f"{part}: the source holds no examples. Give at least one; an iterator that was read before is empty, so "
            "give what makes it (a list, a DataLoader) instead"
        )
    return _as_float32(joined(pieces, part), part)


def items(source: Source, indices: Sequence[int] | NDArray[Any], part: str) -> Examples:
    """These items of a sized dataset. Raises: DataError naming the item that cannot be read."""
    pieces = [_item(source, int(index), part) for index in indices]
    return _as_float32(joined(pieces, part), part)[0]


def in_batches(source: Source, part: str) -> Iterator[Examples]:
    """The examples of an iterable, batch by batch as it gives them. Raises: DataError as `read` does."""
    for examples in _iterated(source, part):
        yield _as_float32(examples, part)[0]


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


def is_counted(source: Source) -> bool:
    """Whether the source knows how many batches it has; a `DataLoader` does if its dataset does."""
    try:
        return len(source) >= 0
    except TypeError:
        return False


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
        return {key: _rows(value, indices) for key, value in source.items()}
    if isinstance(source, (tuple, list)):
        inputs, *targets = source
        return (_input_rows(inputs, indices, *targets), *(_rows(each, indices) for each in targets))
    return _rows(source, indices) if is_array(source) else Subset(source, indices.tolist())


def _input_rows(inputs: Any, indices: NDArray[Any], targets: Any = None) -> Any:
    if isinstance(inputs, Mapping):
        return subset(inputs, indices)
    return tuple(_rows(each, indices) for each in inputs) if _are_several(inputs, targets) else _rows(inputs, indices)


def _rows(column: Any, indices: NDArray[Any]) -> Any:
    """Some examples of an array (examples, ...), or of a list with one element an example."""
    if isinstance(column, torch.Tensor):
        return column[torch.from_numpy(indices)]
    return np.asarray(column)[indices] if is_array(column) else [column[index] for index in indices]


def _iterated(source: Source, part: str) -> Iterator[Examples]:
    if isinstance(source, (str, bytes)) or not isinstance(source, Iterable):
        raise DataError(f"{part}: an object of type {type(source).__name__} is no source of data; give {FORMS}")
    one_by_one = isinstance(source, IterableDataset)
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
        where = f"{part}, {unit} {number}"
        yield from [_example(item, where)] if one_by_one else _batch(item, where)
        number += 1


def _batch(value: Any, where: str) -> list[Examples]:
    """Examples from one value that holds several, with the batch as the first axis; one by one where shapes differ."""
    inputs, targets = _separated(value, where)
    columns, names = _inputs(inputs, where, targets)
    labels = None if targets is None else _column(targets, f"{where}, targets")
    everything = (*columns, *(() if labels is None else (labels,)))
    counts = {len(column) if isinstance(column, list) or column.ndim else -1 for column in everything}
    if len(counts) > 1 or -1 in counts:
        beside = "" if labels is None else f" and targets of shape {_shape(labels)}"
        raise DataError(
            f"{where}: inputs of shape {', '.join(map(_shape, columns))}{beside} do not hold equally many examples; "
            "the first axis of every array must count the examples, in the same order"
        )
    if any(isinstance(column, list) for column in everything):
        answers = [None] * counts.pop() if labels is None else labels
        return [_single([each[row] for each in columns], names, answer) for row, answer in enumerate(answers)]
    return [Examples(inputs=tuple(map(np.asarray, columns)), names=names, targets=_as_array(labels))]


def _as_array(labels: Column | None) -> Array | None:
    return None if labels is None else np.asarray(labels)


def _shape(column: Column) -> str:
    return str(column.shape) if isinstance(column, np.ndarray) else f"({len(column)}, differing)"


def _single(inputs: Sequence[Array], names: tuple[str, ...] | None, targets: Array | None) -> Examples:
    """One example, to which a batch axis is added."""
    labels = None if targets is None else np.asarray(targets)[None]
    return Examples(inputs=tuple(np.asarray(array)[None] for array in inputs), names=names, targets=labels)


def _example(value: Any, where: str) -> Examples:
    """Examples that hold one item."""
    inputs, targets = _separated(value, where)
    names = tuple(map(str, inputs)) if isinstance(inputs, Mapping) else None
    values = _values(inputs, where)
    arrays = [_to_array(held, at) for at, held in values]
    return _single(arrays, names, None if targets is None else _to_array(targets, f"{where}, targets"))


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


def _inputs(value: Any, where: str, targets: Any) -> tuple[list[Column], tuple[str, ...] | None]:
    names = tuple(map(str, value)) if isinstance(value, Mapping) else None
    return [_column(held, at) for at, held in _values(value, where, targets)], names


def _values(value: Any, where: str, targets: Any = None) -> list[tuple[str, Any]]:
    """Each input, behind the words that say where it stands."""
    if isinstance(value, Mapping):
        if not value:
            raise DataError(f"{where}: holds no inputs; give at least one array beside the targets")
        return [(f"{where}, {key!r}", held) for key, held in value.items()]
    if _are_several(value, targets):
        return [(f"{where}, input {number}", held) for number, held in enumerate(value)]
    return [(f"{where}, inputs", value)]


def _are_several(value: Any, targets: Any) -> bool:
    """Whether a value holds several inputs: a tuple, or a list of arrays; but not a list with an array an example."""
    if isinstance(value, tuple):
        return len(value) > 0
    if not isinstance(value, list) or not any(map(is_array, value)):
        return False
    counts = {len(each) if getattr(each, "ndim", 1) else -1 for each in value}
    return targets is None or len(counts) == 1 or len(value) != len(targets)


def _column(value: Any, where: str) -> Column:
    """An array (examples, ...), or a list of arrays where a list or tuple holds examples of different shapes."""
    if isinstance(value, (list, tuple)) and value and not np.isscalar(value[0]):
        elements = [_to_array(each, where) for each in value]
        if len({each.shape for each in elements}) > 1:
            return elements
    return _to_array(value, where)


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


def _as_float32(examples: Examples, part: str) -> tuple[Examples, tuple[str, ...]]:
    """Models compute in float32, so inputs of any other float become that; an overflow shows up as infinity."""
    converted = {str(array.dtype) for array in examples.inputs if array.dtype.kind == "f"} - {"float32"}
    if not converted:
        return examples, ()
    with np.errstate(over="ignore"):
        inputs = tuple(array.astype(np.float32) if array.dtype.kind == "f" else array for array in examples.inputs)
    note = f"The {part} inputs were converted from {', '.join(sorted(converted))} to float32."
    return replace(examples, inputs=inputs), (note,)
