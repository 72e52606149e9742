import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from temper.core.data import Data, Examples, Parts
from temper.core.errors import DataError
from temper.pipeline.disjoint import marks, split
from temper.pipeline.materialize import materialize


def rows(examples: Examples) -> set[bytes]:
    return {row.tobytes() for row in examples.inputs[0]}


def judged(parts: Parts) -> list[Examples]:
    assert parts.calibration is not None
    return [parts.calibration, parts.selection, parts.proof]


def attempt(inputs: np.ndarray, seed: int) -> Parts | str:
    try:
        return materialize(inputs, seed=seed, needs_targets=False)
    except DataError as error:
        return str(error)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Integer inputs of few or many distinct values, so that copies are rare or common."""
    count, distinct = draw(st.integers(1, 120)), draw(st.integers(1, 1000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, distinct, (count, 2))


@settings(max_examples=150, deadline=None)
@given(arrays(), st.integers(0, 1000))
def test_one_source_becomes_disjoint_parts_that_add_up(inputs: np.ndarray, seed: int) -> None:
    parts = attempt(inputs, seed)
    if isinstance(parts, str):
        distinct = len(np.unique(inputs, axis=0))
        assert "cannot be split" in parts
        assert distinct < 3 or len(inputs) > distinct  # copies, which stay together, can use up what there is
        return
    held = judged(parts)
    assert sum(map(len, held)) == len(inputs)
    assert set.union(*map(rows, held)) == {row.tobytes() for row in inputs}
    assert sum(len(rows(each)) for each in held) == len(set.union(*map(rows, held)))
    again = materialize(inputs, seed=seed, needs_targets=False)
    assert all(np.array_equal(one.inputs[0], two.inputs[0]) for one, two in zip(held, judged(again)))


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 120), st.integers(20, 120), st.integers(20, 120), st.integers(0, 1000), st.data())
def test_named_parts_are_disjoint_too(first: int, second: int, third: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    sources = {
        "proof": rng.normal(size=first),
        "training": rng.normal(size=second),
        "selection": rng.normal(size=third),
    }
    chosen = data.draw(st.sets(st.sampled_from(["training", "selection"])))
    parts = materialize(Data(**{name: sources[name] for name in ("proof", *chosen)}), seed=seed, needs_targets=False)
    held = [rows(each) for each in judged(parts)]
    if "training" in chosen:
        kept = slice(None) if parts.kept is None else parts.kept
        held.append({row.tobytes() for row in parts.training[kept].astype(np.float32)})
    assert sum(map(len, held)) == len(set.union(*held)) == first + sum(len(sources[name]) for name in chosen)


@settings(max_examples=100, deadline=None)
@given(arrays(), st.lists(st.integers(0, 60), min_size=1, max_size=3), st.integers(0, 1000))
def test_split_keeps_copies_together_and_near_the_sizes(inputs: np.ndarray, sizes: list[int], seed: int) -> None:
    given_marks = marks(Examples(inputs=(inputs,)))
    positions = split(given_marks, sizes, np.random.default_rng(seed))
    assert sorted(np.concatenate(positions).tolist()) == list(range(len(inputs)))
    held = [set(given_marks[each].tolist()) for each in positions]
    assert sum(map(len, held)) == len(set.union(*held))
    if len(set(given_marks.tolist())) == len(inputs):
        expected = [min(total, len(inputs)) for total in np.cumsum(sizes)]
        assert np.cumsum([len(each) for each in positions])[:-1].tolist() == expected
