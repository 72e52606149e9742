from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from temper.core.data import Data, Examples, Parts
from temper.core.errors import DataError
from temper.pipeline.materialize import call_of, check_targets, input_names, materialize
from temper.pipeline.sources import read, subset


def inputs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def labels(count: int) -> np.ndarray:
    return np.arange(count) % 4


def pair(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return inputs(count, seed), labels(count)


def sizes(parts: Parts) -> tuple[int, int, int]:
    assert parts.calibration is not None
    return len(parts.calibration), len(parts.selection), len(parts.proof)


def made(data: Any, **options: Any) -> Parts:
    return materialize(data, **{"seed": 0, "needs_targets": True, **options})


class Items(Dataset[Any]):
    """A sized dataset over a list of items, where an item that is an exception is raised."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(*pair(7)))


X, Y = pair(7)
T, U = torch.tensor(X), torch.tensor(Y)


class TestSources:
    @pytest.mark.parametrize(
        "source",
        [
            (X, Y),
            [T, U],
            {"x": X, "label": Y},
            Items([(x, int(y)) for x, y in zip(T, Y)]),
            Items([{"x": x.tolist(), "targets": y} for x, y in zip(X, Y)]),
            TensorDataset(T, U),
            DataLoader(TensorDataset(T, U), batch_size=3),
            [(X[:4], Y[:4]), (X[4:], Y[4:])],
            ({"x": T[at], "labels": U[at]} for at in (slice(0, 5), slice(5, 7))),
            Stream(),
        ],
    )
    def test_every_form_gives_the_same_examples(self, source: Any) -> None:
        examples, _ = read(source, "proof")
        assert examples.targets is not None
        np.testing.assert_array_equal(examples.inputs[0], X)
        np.testing.assert_array_equal(examples.targets, Y)
        assert examples.inputs[0].dtype == np.float32
        assert examples.names in (None, ("x",))

    @pytest.mark.parametrize(
        "source",
        [((X, Y), Y), ({"a": X, "b": Y}, Y), Items([((x, y), y) for x, y in zip(X, Y)])],
    )
    def test_several_inputs(self, source: Any) -> None:
        examples, _ = read(source, "proof")
        assert len(examples.inputs) == 2
        np.testing.assert_array_equal(examples.inputs[1], Y)

    def test_a_loader_over_pairs_of_inputs(self) -> None:
        loader = DataLoader(Items([((x, y), y) for x, y in zip(T, U)]), batch_size=2)
        assert read(loader, "proof")[0].style == "tuple"

    @pytest.mark.parametrize("source", [X, (X,), TensorDataset(T), [X[:3], X[3:5], X[5:]]])
    def test_inputs_alone(self, source: Any) -> None:
        examples, _ = read(source, "proof")
        assert examples.targets is None
        np.testing.assert_array_equal(examples.inputs[0], X)

    @pytest.mark.parametrize("array", [X.astype(np.float64), T.double(), T.half()])
    def test_other_floats_become_float32_with_a_note(self, array: Any) -> None:
        parts = made((array, Y), needs_targets=False)
        assert parts.proof.inputs[0].dtype == np.float32
        assert "to float32" in parts.notes[0]

    def test_bfloat16_is_read(self) -> None:
        assert read(T.bfloat16(), "proof")[0].inputs[0].dtype == np.float32


class TestSplits:
    def test_one_source(self) -> None:
        assert sizes(made(pair(100))) == (20, 30, 50)
        assert sizes(made(Data(proof=pair(100)))) == (20, 30, 50)
        assert sizes(made(pair(8512))) == (512, 3000, 5000)

    def test_missing_parts_come_from_where_it_is_said(self) -> None:
        assert sizes(made(Data(proof=pair(100), calibration=inputs(10, 1)))) == (10, 20, 80)
        assert sizes(made(Data(selection=pair(100), calibration=inputs(10, 1)))) == (10, 20, 80)
        assert sizes(made(Data(selection=pair(50), proof=pair(100, 1)))) == (10, 40, 100)

    def test_calibration_is_taken_out_of_training(self) -> None:
        for training in (pair(60, 1), TensorDataset(*map(torch.tensor, pair(60, 1)))):
            parts = made(Data(proof=pair(100), training=training))
            assert sizes(parts) == (12, 20, 80)
            assert parts.kept is not None
            left, _ = read(subset(parts.training, parts.kept), "training")
            together = np.concatenate([left.inputs[0], parts.calibration.inputs[0]])
            np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(inputs(60, 1), axis=0))
            assert "Took 12 of the 60 examples of training" in " ".join(parts.notes)

    def test_a_training_loader_is_left_as_it_is(self) -> None:
        loader = DataLoader(TensorDataset(torch.tensor(inputs(60, 1))), batch_size=10)
        parts = made(Data(proof=pair(100), training=loader))
        assert parts.training is loader
        assert parts.kept is None
        assert sizes(parts) == (4, 16, 80)
        assert "DataLoader cannot be read by number" in " ".join(parts.notes)

    def test_the_same_seed_splits_alike_in_any_order(self) -> None:
        order = np.random.default_rng(1).permutation(100)
        one, two = made(pair(100)), made((inputs(100)[order], labels(100)[order]))
        np.testing.assert_array_equal(one.proof.inputs[0], two.proof.inputs[0])
        other = made(pair(100), seed=1)
        assert not np.array_equal(one.proof.inputs[0], other.proof.inputs[0])

    def test_too_few_to_split(self) -> None:
        assert sizes(made(pair(3), needs_targets=False)) == (1, 1, 1)
        for source in (inputs(2), np.ones((50, 3), dtype=np.float32)):
            with pytest.raises(DataError, match=r"examples, (2|1) of them distinct, cannot be split into calibration"):
                made(source, needs_targets=False)


class TestSharedExamples:
    def test_a_few_are_dropped_from_the_less_protected(self) -> None:
        proof, selection = inputs(400), np.concatenate([inputs(400, 1), inputs(2)])
        calibration, training = np.concatenate([inputs(300, 2), inputs(1)]), np.concatenate([inputs(500, 3), inputs(3)])
        data = Data(calibration=calibration, training=training, selection=selection, proof=proof)
        parts = made(data, needs_targets=False)
        assert parts.kept is not None
        assert (*sizes(parts), len(parts.kept)) == (300, 400, 400, 500)
        assert "Dropped from selection, because proof holds them too: 2 of 402 examples." in parts.notes
        assert "Dropped from training, because proof holds them too: 3 of 503 examples." in parts.notes

    @pytest.mark.parametrize("part", ["selection", "calibration", "training"])
    def test_the_same_array_twice_is_refused(self, part: str) -> None:
        with pytest.raises(DataError, match=r"100 of the 100 examples of .* also stand in"):
            made(Data(proof=pair(100), **{part: (inputs(200)[:100], labels(100))}))

    def test_calibration_may_be_a_piece_of_training(self) -> None:
        parts = made(Data(proof=pair(50), training=pair(100, 1), calibration=inputs(100, 1)[:20]))
        assert parts.kept is not None
        assert len(parts.kept) == 80
        with pytest.raises(DataError, match="every example stands in another part"):
            made(Data(proof=pair(50), training=pair(100, 1), calibration=pair(100, 1)))

    def test_names_and_float64_do_not_hide_a_copy(self) -> None:
        proof = {"a": inputs(9), "b": inputs(9, 1), "labels": labels(9)}
        turned = {"b": inputs(9, 1).astype(np.float64), "a": inputs(9), "labels": labels(9)}
        with pytest.raises(DataError, match="9 of the 9 examples"):
            made(Data(proof=proof, selection=turned))

    def test_training_that_changes_is_noted(self) -> None:
        class Augmented(Items):
            def __getitem__(self, index: int) -> Any:
                return torch.rand(3), 0

        parts = made(Data(proof=pair(50), training=Augmented([0] * 30)))
        assert "change from read to read" in " ".join(parts.notes)

    def test_training_that_cannot_be_read_is_noted(self) -> None:
        training = Items([KeyError("gone")] * 5)
        parts = made(Data(proof=pair(50), training=training))
        assert parts.training is training
        assert "item 0: cannot be read: KeyError" in " ".join(parts.notes)


def with_nan() -> np.ndarray:
    bad = inputs(20)
    bad[[3, 5], 0] = np.nan, np.inf
    return bad


class TestRefusals:
    @pytest.mark.parametrize(
        ("proof", "said"),
        [
            ((inputs(0), labels(0)), "proof: the source holds no examples"),
            (iter([]), "proof: the source holds no examples"),
            ((inputs(5), labels(4)), r"proof: inputs of shape \(5, 3\) and targets of shape \(4,\)"),
            ((inputs(5), 3), "equally many"),
            (inputs(5), "proof: holds no targets.*cosine"),
            ((inputs(9), np.full(9, 2)), "proof: all 9 examples have the target 2"),
            ((np.array(["a", "b"]), labels(2)), "proof, inputs: ndarray of dtype <U1 is not numeric"),
            ({"text": ["a", "b"], "labels": labels(2)}, "proof, 'text': list of dtype <U1 is not numeric"),
            ((with_nan(), labels(20)), "proof, input 'input_0': 2 of 20 examples hold NaN .* example 3"),
            ((inputs(3), np.array([0, np.nan, 1])), "proof, targets: 1 of 3"),
            ((np.full((5, 3), 1e200), labels(5)), "5 of 5 examples hold NaN or infinity as float32"),
            (
                [(inputs(4), labels(4)), (inputs(4).astype(int), labels(4))],
                "1 holds .*int64.*number 0 .*float32",
            ),
            (Items([(X[0], 0), (X[1:3], 1)]), "number 1 holds"),
            (Items([(X[0], 0), OSError("lost")]), "proof, item 1: cannot be read: OSError: lost"),
            ((inputs(4), inputs(4, 1), labels(4)), "tuple of 3 values is ambiguous"),
            ({"x": X, "label": Y, "labels": Y}, "under both 'labels' and 'label'"),
            ({"labels": Y}, "holds no inputs"),
            ("images/", "type str is no source"),
            (5, "type int is no source"),
        ],
    )
    def test_a_part_that_is_unfit(self, proof: Any, said: str) -> None:
        with pytest.raises(DataError, match=said):
            made(Data(proof=proof, calibration=inputs(10, 1)))

    def test_a_batch_that_fails(self) -> None:
        def batches() -> Iterator[Any]:
            yield pair(3)
            raise OSError("disk")

        with pytest.raises(DataError, match="proof, batch 1: cannot be read: OSError: disk"):
            made(Data(proof=batches()))

    @pytest.mark.parametrize(
        ("calibration", "said"),
        [
            (inputs(5, 1)[:, :2], r"calibration and proof differ .*float32\[batch, 2\].*against.*float32\[batch, 3\]"),
            (np.ones((5, 3), dtype=np.uint8), "uint8"),
            (((inputs(5, 1), inputs(5, 2)), labels(5)), "as a tuple"),
            ({"x": inputs(5, 1)}, "as a dict"),
        ],
    )
    def test_parts_that_differ(self, calibration: Any, said: str) -> None:
        with pytest.raises(DataError, match=said):
            made(Data(proof=pair(50), calibration=calibration))

    def test_without_need_targets_are_not_judged(self) -> None:
        assert sizes(made((inputs(10), np.full(10, 2)), needs_targets=False)) == (2, 3, 5)
        assert made(inputs(10), needs_targets=False).proof.targets is None


class TestTargets:
    LOGITS = np.zeros((6, 4), dtype=np.float32)

    @pytest.mark.parametrize("targets", [np.array([0, 1, 2, 3, 4, 9]), np.array([0, 1, 2, 3, -1, -100])])
    def test_out_of_range(self, targets: np.ndarray) -> None:
        with pytest.raises(DataError, match=r"proof: 2 of 6 examples .*examples 4, 5.*4 classes are 0 to 3"):
            check_targets(targets, {"logits": self.LOGITS}, "proof")

    def test_within_range_dense_or_no_classes(self) -> None:
        check_targets(labels(6), self.LOGITS, "proof")
        check_targets(np.full((6, 5), -100), np.zeros((6, 5, 4)), "proof")
        check_targets(np.full(6, 99), self.LOGITS[:, :1], "proof")
        check_targets(np.full(6, 99.0), self.LOGITS, "proof")


class TestCalls:
    def test_call_of(self) -> None:
        (tensor,), keyword = call_of(Examples(inputs=(inputs(3),)), np.arange(5) % 3)
        assert not keyword
        np.testing.assert_array_equal(tensor.numpy(), inputs(3)[[0, 1, 2, 0, 1]])
        positional, keyword = call_of(Examples(inputs=(inputs(3), labels(3)), names=("x", "y")), np.arange(2))
        assert not positional
        assert {name: tuple(tensor.shape) for name, tensor in keyword.items()} == {"x": (2, 3), "y": (2,)}

    def test_input_names(self) -> None:
        class Net(nn.Module):
            def forward(self, pixels: Any, mask: Any = None) -> Any:
                return pixels

        class Any_(nn.Module):
            def forward(self, first: Any, *rest: Any) -> Any:
                return first

        one, two = Examples(inputs=(X,)), Examples(inputs=(X, X))
        assert input_names(Net(), one) == ("pixels",)
        assert input_names(Net(), two) == ("pixels", "mask")
        assert input_names(Any_(), Examples(inputs=(X, X, X))) == ("first", "rest_0", "rest_1")
        assert input_names(Net(), Examples(inputs=(X, X), names=("mask", "pixels"))) == ("mask", "pixels")
        with pytest.raises(DataError, match=r"Net.forward.*too many positional"):
            input_names(Net(), Examples(inputs=(X, X, X)))
        with pytest.raises(DataError, match="unexpected keyword argument 'index'"):
            input_names(Net(), Examples(inputs=(X, X), names=("pixels", "index")))
