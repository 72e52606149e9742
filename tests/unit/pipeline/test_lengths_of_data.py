"""Examples that differ in length, in every form in which data may come."""

from typing import Any

import numpy as np
import pytest
import torch

from temper.core.data import Data, Examples
from temper.core.errors import DataError
from temper.pipeline.disjoint import marks
from temper.pipeline.materialize import materialize
from temper.pipeline.sources import read, subset

RNG = np.random.default_rng(0)
LENGTHS = [int(length) for length in RNG.integers(1, 8, 30)]
IDS = [RNG.integers(1, 99, length) for length in LENGTHS]
MASKS = [np.ones(length, np.int64) for length in LENGTHS]
LABELS = np.arange(30) % 3
FORMS: dict[str, Any] = {
    "a dict of lists of arrays": {"ids": IDS, "mask": MASKS, "labels": LABELS},
    "a dict of lists of lists": {"ids": [x.tolist() for x in IDS], "mask": MASKS, "labels": LABELS.tolist()},
    "a dict of lists of tensors": {"ids": list(map(torch.from_numpy, IDS)), "mask": MASKS, "labels": LABELS},
    "a dataset": torch.utils.data.Subset(
        [{"ids": x, "mask": m, "labels": y} for x, m, y in zip(IDS, MASKS, LABELS)],  # type: ignore[arg-type]
        range(30),
    ),
    "batches of one width each": [
        {"ids": x[None], "mask": m[None], "labels": y[None]} for x, m, y in zip(IDS, MASKS, LABELS)
    ],
}


def checked(examples: Examples) -> None:
    """Every example is there at its own length, with zeros behind it."""
    assert examples.lengths is not None
    assert examples.lengths.tolist() == LENGTHS
    assert examples.axes == (1, 1)
    ids, mask = examples.inputs
    assert ids.shape == mask.shape == (30, max(LENGTHS))
    for row, expected in enumerate(IDS):
        own, ones = examples.inputs_at(np.array([row]))
        assert own[0].tolist() == expected.tolist()
        assert ones.all()
        assert not ids[row, len(expected) :].any()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_natural_lengths_are_kept(form: Any) -> None:
    examples, notes = read(form, "data")
    checked(examples)
    assert not notes
    assert examples.targets is not None
    assert examples.targets.tolist() == LABELS.tolist()
    assert [str(spec) for spec in examples.layout] == ["ids: int64[batch, length]", "mask: int64[batch, length]"]


def test_one_input_by_position_and_several() -> None:
    alone, _ = read((IDS, LABELS), "data")
    assert alone.style == "tensor"
    pair, _ = read(((IDS, MASKS), LABELS), "data")
    checked(pair)
    several, _ = read(([np.zeros((30, 2)), np.zeros((30, 3))], LABELS), "data")
    assert len(several.inputs) == 2, "a list of arrays that all hold as many examples is several inputs"
    assert several.lengths is None


def test_targets_of_each_token_are_padded_with_what_no_metric_counts() -> None:
    examples, _ = read((IDS, [x % 5 for x in IDS]), "data")
    assert examples.targets is not None
    for row, length in enumerate(LENGTHS):
        assert (examples.targets[row, length:] == -100).all()
        assert examples.targets[row, :length].tolist() == (IDS[row] % 5).tolist()


def test_targets_alone_may_differ() -> None:
    """Boxes of a detector: images of one size, more or fewer boxes in each."""
    boxes = [np.ones((count, 4), np.uint8) for count in (2, 0, 1)]
    examples, _ = read((np.zeros((3, 8)), boxes), "data")
    assert examples.lengths is None
    assert examples.targets is not None
    assert examples.targets.shape == (3, 2, 4)
    assert examples.targets.dtype == np.int64, "-100 is no uint8"
    assert (examples.targets[1] == -100).all()


@pytest.mark.parametrize("form", [form for name, form in FORMS.items() if "batches" not in name])
def test_a_subset_has_the_same_form(form: Any) -> None:
    examples, _ = read(subset(form, np.array([4, 2])), "data")
    assert examples.lengths is not None or LENGTHS[4] == LENGTHS[2]
    assert examples.inputs_at(np.array([1]))[0][0].tolist() == IDS[2].tolist()


def test_marks_do_not_depend_on_padding() -> None:
    whole = marks(read({"ids": IDS, "mask": MASKS}, "data")[0])
    for row in (0, 7):
        alone, _ = read({"ids": IDS[row][None], "mask": MASKS[row][None]}, "data")
        assert alone.lengths is None
        assert marks(alone)[0] == whole[row]
    assert marks(read((np.array([[3, 0]]),), "data")[0]) != marks(read((np.array([[3]]),), "data")[0])


def test_parts_are_split_and_say_how_long_they_are() -> None:
    parts = materialize(Data({"ids": IDS, "mask": MASKS, "labels": LABELS}), seed=0, needs_targets=True)
    assert parts.notes[-1] == f"The examples differ in length: {min(LENGTHS)} to {max(LENGTHS)}, median " + (
        f"{np.median(LENGTHS):g}. Each is run at its own."
    )
    assert parts.proof.stored[-1] is parts.proof.lengths
    assert parts.calibration is not None
    assert parts.calibration.layout == parts.proof.layout


def test_a_part_of_one_length_joins_others_that_differ() -> None:
    proof = {"ids": IDS, "mask": MASKS, "labels": LABELS}
    selection = {"mask": np.ones((4, 9), np.int64), "ids": 100 + np.arange(36).reshape(4, 9), "labels": LABELS[:4]}
    parts = materialize(Data(proof=proof, selection=selection), seed=0, needs_targets=True)
    assert parts.selection.layout == parts.proof.layout
    assert parts.selection.names == parts.proof.names
    assert parts.selection.lengths is not None
    assert set(parts.selection.lengths.tolist()) == {9}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"ids": IDS, "mask": [*MASKS[:-1], np.ones(LENGTHS[-1] + 1, int)]}, "number 29: .*'ids' has .*'mask' has"),
        (
            iter([np.zeros((1, 3, 4)), np.zeros((1, 5, 6))]),
            r"1 has shape \(batch, 5, 6\).*differ in 2 axes.*resize",
        ),
        ({"ids": [*IDS[:-1], np.ones(0, np.int64)], "mask": [*MASKS[:-1], np.ones(0, np.int64)]}, "29: has length 0"),
        ((IDS, [np.zeros((n, n)) for n in LENGTHS]), "targets: number .* differ in 2 axes"),
        (([*IDS[:-1], np.ones((2, 2), np.int64)], LABELS), "number 29 holds"),
    ],
)
def test_what_is_not_one_shared_length(source: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(source, "proof")


def test_parts_of_two_fixed_sizes_are_a_mistake() -> None:
    with pytest.raises(DataError, match=r"selection and proof differ in their inputs: .*batch, 2.*batch, 3"):
        materialize(Data(proof=np.eye(3), selection=np.eye(2)), seed=0, needs_targets=False)
