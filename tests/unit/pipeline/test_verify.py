"""How many predictions are counted as reproduced, and when a verification passes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from temper.core.proof import Verdict
from temper.pipeline.prove import digest
from temper.pipeline.verify import Verification, _reproduced

REPORTED = np.arange(12, dtype=np.float32).reshape(6, 2)


def reproduced(folder: Path, now: np.ndarray, *, kept: bool = True) -> int | None:
    if kept:
        (folder / "predictions").mkdir()
        np.save(folder / "predictions" / "output_0.npy", REPORTED)
    proof = SimpleNamespace(predictions=digest([REPORTED]), examples=6)
    return _reproduced(SimpleNamespace(folder=folder / "artifact"), proof, SimpleNamespace(outputs=(now,)))


def test_predictions_are_compared_bit_for_bit(tmp_path: Path) -> None:
    changed = REPORTED.copy()
    changed[[1, 4], 0] += 1e-6 * changed[[1, 4], 0]
    assert reproduced(tmp_path, changed) == 4


def test_the_digest_suffices_where_all_are_equal(tmp_path: Path) -> None:
    assert reproduced(tmp_path, REPORTED.copy(), kept=False) == 6
    assert reproduced(tmp_path, REPORTED + 1, kept=False) is None


def test_the_digest_knows_dtype_shape_and_order() -> None:
    others = [REPORTED.astype(np.float64), REPORTED.reshape(3, 4), REPORTED[::-1], REPORTED + 0.0]
    assert [digest([each]) == digest([REPORTED]) for each in others] == [False, False, False, True]
    assert digest([REPORTED, REPORTED]) != digest([REPORTED])
    assert digest([np.asfortranarray(REPORTED)]) == digest([REPORTED])


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [("AA", "ACCEPT"), ("AI", "INCONCLUSIVE"), ("IR", "REJECT"), ("AR", "REJECT"), ("A", "ACCEPT")],
)
def test_one_limit_that_is_not_proven_is_enough(verdicts: str, expected: str) -> None:
    names = {each.value[0]: each for each in Verdict}
    judgements = tuple(SimpleNamespace(verdict=names[letter]) for letter in verdicts)
    found = Verification(proof=None, rows=(), judgements=judgements, reproduced=6, examples=6)
    assert found.verdict is Verdict(expected)
