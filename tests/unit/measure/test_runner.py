"""The measuring process's own part, called in this one: which batches it times, and how it predicts."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from temper.core.schema import Schema, TensorSpec
from temper.measure.runner import Session

TOKENS = TensorSpec(name="tokens", shape=(None, "length"), dtype="int64")
OUTPUT = TensorSpec(name="doubled", shape=(None, "length"), dtype="int64")
SCHEMA = Schema(inputs=(TOKENS,), outputs=(OUTPUT,), nesting="tensor")
LENGTHS = np.array([9, 2, 2, 5, 5, 5, 1, 3, 2, 7, 4, 4, 6, 8, 2, 3, 3, 20])


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rows = np.arange(1, len(LENGTHS) + 1)[:, None]
    tokens = np.where(np.arange(20) < LENGTHS[:, None], rows, 0)
    for name, array in (("tokens", tokens), ("lengths", LENGTHS)):
        np.save(tmp_path / f"{name}.npy", array)
    return [str(tmp_path / "tokens.npy"), str(tmp_path / "lengths.npy")]


@pytest.fixture
def session() -> Session:
    session = Session()
    session.artifact = SimpleNamespace(schema=SCHEMA)  # type: ignore[assignment]
    session.seen = []

    def model(tokens: np.ndarray) -> np.ndarray:
        session.seen.append(tokens.shape)
        assert tokens.all(), "padding reached the model"
        return 2 * tokens

    session.model = model  # type: ignore[assignment]
    return session


def test_predictions_are_padded_behind_each_length(session: Session, files: list[str], tmp_path: Path) -> None:
    (file,) = session.predict(files, str(tmp_path / "out"), 3, 1, 18)
    doubled = np.load(file)
    np.testing.assert_array_equal(doubled, 2 * np.load(files[0])[1:18])
    assert max(batch for batch, _ in session.seen) == 3
    assert len(session.seen) < 17, "examples of one length share a batch"


@pytest.mark.parametrize("batch", [1, 3])
def test_lengths_as_they_come_are_spread_evenly(session: Session, files: list[str], batch: int) -> None:
    timed = session.prepare(files, batch)
    assert timed == sorted(timed)
    assert len(timed) == 8 == session.cycle
    assert np.mean(timed) == pytest.approx(LENGTHS.mean(), rel=0.25)
    assert [each[0].shape for each in session.batches] == [(batch, length) for length in timed]
    block = session.block(9, settle=3)
    assert len(block["seconds"]) == 16, "whole cycles"
    assert block["cycle"] == 8


def test_inputs_of_exactly_one_length(session: Session, files: list[str]) -> None:
    session.prepare(files, 2, 6)
    assert {each[0].shape for each in session.batches} == {(2, 6)}
    assert (session.batches[0][0][1] == 2).all(), "an example of length 2, repeated"
    assert len(session.block(5)["seconds"]) == 5


def test_made_up_inputs(session: Session) -> None:
    session.prepare([], 2, 6)
    assert session.batches[0][0].shape == (2, 6)


def test_examples_of_one_size_are_the_first_ones(session: Session, files: list[str]) -> None:
    fixed = TensorSpec(name="tokens", shape=(None, 20), dtype="int64")
    session.artifact = SimpleNamespace(schema=Schema(inputs=(fixed,), outputs=(OUTPUT,), nesting="tensor"))  # type: ignore[assignment]
    assert session.prepare(files[:1], 2) == []
    np.testing.assert_array_equal(session.batches[1][0], np.load(files[0])[2:4])
    assert session.cycle == 1
