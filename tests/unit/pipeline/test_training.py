"""The training part in batches, whatever it was given as."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from temper.core.data import Data, Examples
from temper.core.schema import LENGTH, Schema, TensorSpec
from temper.core.task import Task
from temper.core.training import Batch, Training
from temper.pipeline.sources import read
from temper.pipeline.training import TrainingPart

COUNT = 10


def schema(*shape: int | str | None, batch: int | None = None) -> Schema:
    inputs = (TensorSpec(name="x", shape=(batch, *shape), dtype="float32"),)
    return Schema(inputs=inputs, outputs=inputs, nesting="tensor")


def training(source: Any, form: Schema, selection: Examples | None = None) -> Training:
    task = Task(nn.Linear(2, 2), Data(selection=(np.zeros((4, 2)), np.zeros(4)), training=source), loss="mse")
    stored, targets = ((), None) if selection is None else (selection.stored, selection.targets)
    part = TrainingPart(task=task, kept=None, selection=stored, targets=targets, schema=form, metric="cosine")
    return part.training(seed=0, deadline=np.inf, folder=None, tell=print)


def sizes(batches: Any) -> list[int]:
    found = [len(targets) for _, targets in batches]
    assert len(batches) >= len(found)
    return found


class Stream(IterableDataset[tuple[Tensor, int]]):
    """Ten examples, one by one."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(torch.full((2,), float(index)), index) for index in range(COUNT)])


class Counted(Stream):
    def __len__(self) -> int:
        return COUNT


@pytest.mark.parametrize(
    "source",
    [
        (np.zeros((COUNT, 2), np.float32), np.arange(COUNT)),
        [(torch.zeros(2), index) for index in range(COUNT)],
        Stream(),
        Counted(),
        DataLoader(Stream(), batch_size=5),
    ],
    ids=["arrays", "items", "stream", "counted stream", "loader of a stream"],
)
def test_examples_come_in_batches_of_the_size_that_is_asked_for(source: Any) -> None:
    given = training(source if not isinstance(source, list) else Listed(source), schema(2))
    first, second = given.batches(4, 0), given.batches(4, 1)
    assert sizes(first) == sizes(second) == [4, 4]
    orders = [torch.cat([targets for _, targets in batches]).tolist() for batches in (first, second)]
    assert orders[0] != orders[1]
    assert len(set(orders[0])) == 8


class Listed:
    """A dataset whose items are read by their number."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


def test_a_loader_keeps_its_batches_and_a_model_of_one_batch_gets_that() -> None:
    loader = DataLoader(Listed([(torch.zeros(2), index) for index in range(COUNT)]), batch_size=3)
    assert sizes(training(loader, schema(2)).batches(4, 0)) == [3, 3, 3, 1]
    assert sizes(training(loader, schema(2, batch=3)).batches(4, 0)) == [3, 3, 3]
    arrays = (np.zeros((COUNT, 2), np.float32), np.arange(COUNT))
    fixed = training(arrays, schema(2, batch=3), read(arrays, "selection")[0])
    assert sizes(fixed.batches(4, 0)) == [3, 3, 3]
    assert sizes(fixed.selection(4)) == [3, 3, 3]


def test_a_model_of_one_batch_gets_no_other() -> None:
    few = (np.zeros((2, 2), np.float32), np.arange(2))
    assert sizes(training(few, schema(2)).batches(3, 0)) == [2]
    assert sizes(training(few, schema(2, batch=3)).batches(3, 0)) == []
    texts = {"x": TEXTS, "labels": np.arange(len(TEXTS))}
    assert sizes(training(texts, schema(LENGTH, batch=2)).batches(8, 0)) == [2, 2]


LENGTHS = (3, 5, 3, 5, 4, 3)
TEXTS = [np.full(length, 0.5, np.float32) for length in LENGTHS]


def check_lengths(batches: list[Batch], targets_of: Any) -> None:
    assert sorted(len(targets) for _, targets in batches) == [1, 2, 3]
    for (x,), targets in batches:
        assert targets.shape == targets_of(x.shape[1], len(x))


def test_targets_are_as_long_as_their_examples() -> None:
    """One a token: padding, which no metric counts, is cut off with that of the inputs."""
    labels = [np.arange(length) for length in LENGTHS]
    given = training({"x": TEXTS, "labels": labels}, schema(LENGTH), read({"x": TEXTS, "labels": labels}, "")[0])
    for batches in (given.batches(8, 0), given.selection(8)):
        check_lengths(list(batches), lambda length, count: (count, length))


def test_targets_of_another_size_stay_as_they_are() -> None:
    wide = np.arange(6 * 5).reshape(6, 5)
    given = training({"x": TEXTS, "labels": wide}, schema(LENGTH), read({"x": TEXTS, "labels": wide}, "")[0])
    for batches in (given.batches(8, 0), given.selection(8)):
        check_lengths(list(batches), lambda length, count: (count, 5))
