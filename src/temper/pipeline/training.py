"""The training part of a task, made again in the process that trains: batches, a loss and a deadline."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from temper.core.data import Examples, Source
from temper.core.errors import DataError
from temper.core.lengths import IGNORED, batches, cut, groups
from temper.core.schema import Array, Schema
from temper.core.task import Task
from temper.core.training import Batch, Batches, Training
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.sources import in_batches, is_arrays, is_counted, is_sized, items, read, subset
from temper.training.losses import has_loss, resolve

PART = "training"
PROBED = 8
"""Items of a dataset that are looked at to see whether its examples differ in length."""


def why_not(task: Task, metric: str) -> str | None:
    """Why the training part of a task that has one cannot be trained on, or None if it can."""
    if task.source is None:
        return "processes that train make the task anew from its file: give the task as file.py:name"
    if not has_loss(task.loss, metric):
        return f'metric {metric!r} has no loss of its own: give the task one, such as loss="cross_entropy"'
    return None


@dataclass(frozen=True, eq=False)
class TrainingPart:
    """What training needs of a task: its source of examples, which of them may be used, and the selection part.

    `kept` are the positions (count,) of those that stand in no other part, or None for all. `selection` holds stored
    inputs in the order of the schema's, as `core.lengths` reads them, and `targets` theirs.
    """

    task: Task
    kept: NDArray[np.int64] | None
    selection: tuple[Array, ...]
    targets: Array | None
    schema: Schema
    metric: str

    def stored_in(self, folder: RunFolder) -> dict[str, Any]:
        """What another process needs to make the part again, with its arrays stored in the run's folder."""
        kept = [] if self.kept is None else folder.store(PART, "kept", [self.kept])
        targets = [] if self.targets is None else folder.store("selection", "target", [self.targets])
        return {
            "reference": self.task.source,
            "kept": str(kept[0]) if kept else None,
            "selection": [str(file) for file in folder.stored("selection", "input")],
            "targets": str(targets[0]) if targets else None,
            "metric": self.metric,
            "checkpoints": str(folder.checkpoints),
        }

    def training(self, *, seed: int, deadline: float, folder: Path | None, tell: Callable[[str], None]) -> Training:
        """What techniques get; the source is not read before they ask for batches."""
        return Training(
            batches=lambda size, epoch: self._epoch(self.schema.batch or size, np.random.default_rng((seed, epoch))),
            selection=lambda size: _Selection(self.selection, self.targets, self.schema, self.schema.batch or size),
            loss=resolve(self.task.loss, self.metric, self.schema),
            deadline=deadline,
            folder=folder,
            tell=tell,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )

    def _epoch(self, size: int, rng: np.random.Generator) -> Batches:
        if isinstance(self._source, Examples):
            return _Held(self._source, self.schema, size, rng)
        if is_sized(self._source):
            return _Read(self._source, self.schema, size, rng)
        return _Given(self._source, self.schema)

    @cached_property
    def _source(self) -> Source | Examples:
        """The source as it is gone through, or in memory.

        That is where arrays are, what differs in length, what cannot be counted, and what gives examples one by one.
        """
        source = self.task.data.training
        if self.kept is not None:
            source = subset(source, self.kept)
        if is_arrays(source):
            return read(source, PART)[0]
        if is_sized(source):
            some = items(source, np.arange(min(PROBED, len(source))), PART)
            return source if some.lengths is None else read(source, PART)[0]
        by_batch = is_counted(source) and not isinstance(source, IterableDataset)
        return source if by_batch else read(source, PART)[0]


class _Selection:
    """The selection part in batches of one length each; none where it has no targets."""

    def __init__(self, stored: tuple[Array, ...], targets: Array | None, schema: Schema, size: int) -> None:
        self._stored, self._targets, self._schema, self._size = stored, targets, schema, size

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Batch]:
        if self._targets is not None:
            for rows, inputs in batches(self._schema, self._stored, self._size):
                if self._schema.batch in (None, len(rows)):
                    axes = [spec.length_axis for spec in self._schema.inputs]
                    targets = _targets_at(self._targets[rows], self._stored, inputs, axes)
                    yield tuple(map(_tensor, inputs)), _tensor(targets)


class _Held:
    """Batches of examples in memory, of one length each, in random order; where all have one length, whole ones."""

    def __init__(self, examples: Examples, schema: Schema, size: int, rng: np.random.Generator) -> None:
        self._examples, self._schema = examples, schema
        order = rng.permutation(len(examples))
        lengths = None if examples.lengths is None else examples.lengths[order]
        rows = [order[each] for each in groups(lengths, len(order), size)]
        if lengths is None or schema.batch:
            rows = _whole(rows, size, schema)
        self._rows = [rows[index] for index in rng.permutation(len(rows))]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self._rows:
            yield _batch(self._examples.take(rows), self._schema)


class _Read:
    """Batches of a dataset whose items are read when their turn comes, in random order."""

    def __init__(self, source: Source, schema: Schema, size: int, rng: np.random.Generator) -> None:
        self._source, self._schema = source, schema
        order = rng.permutation(len(source))
        self._rows = _whole([order[start : start + size] for start in range(0, len(order), size)], size, schema)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self._rows:
            yield _batch(items(self._source, rows, PART), self._schema)


class _Given:
    """Batches as the source itself makes them, such as a `DataLoader`.

    A model that takes a batch of one size only gets those of that size.
    """

    def __init__(self, source: Source, schema: Schema) -> None:
        self._source, self._schema = source, schema

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Batch]:
        for examples in in_batches(self._source, PART):
            if self._schema.batch in (None, len(examples)):
                yield _batch(examples, self._schema)


def _whole(rows: Sequence[NDArray[np.int64]], size: int, schema: Schema) -> list[NDArray[np.int64]]:
    """Without batches that are smaller than others, unless there is but one and the model takes that as well."""
    return list(rows) if len(rows) == 1 and not schema.batch else [each for each in rows if len(each) == size]


def _batch(examples: Examples, schema: Schema) -> Batch:
    if examples.targets is None:
        raise DataError(f"{PART}: holds no targets, and the loss compares with them. Give (inputs, targets)")
    ordered = examples.ordered([spec.name for spec in schema.inputs])
    inputs = ordered.inputs_at(np.arange(len(ordered)))
    targets = _targets_at(examples.targets, ordered.inputs, inputs, ordered.length_axes)
    return tuple(map(_tensor, inputs)), _tensor(targets)


def _targets_at(targets: Array, padded: Sequence[Array], inputs: Sequence[Array], axes: Sequence[int | None]) -> Array:
    """The targets of examples of one length, cut to it where they are as long as the padded inputs, and padded too."""
    sizes = [(one.shape[axis], other.shape[axis]) for one, other, axis in zip(padded, inputs, axes) if axis is not None]
    if not sizes:
        return targets
    whole, length = sizes[0]
    for axis in range(1, targets.ndim):
        if targets.shape[axis] == whole and (np.moveaxis(targets, axis, 0)[length:] == IGNORED).all():
            return cut(targets, axis, length)
    return targets


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
