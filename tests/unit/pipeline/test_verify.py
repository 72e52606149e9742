"""How many predictions are counted as reproduced, and when a verification passes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from temper.core.goal import Goal
from temper.core.measurement import Measurement
from temper.core.proof import Judgement, Verdict
from temper.core.recipe import Recipe
from temper.pipeline import prove
from temper.pipeline import verify as module
from temper.pipeline.prove import digest
from temper.pipeline.verify import Verification, _reproduced, _verified
from temper.runtimes.onnxruntime import OnnxRuntime

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


@pytest.mark.parametrize("proven", [Verdict.ACCEPT, Verdict.INCONCLUSIVE])
def test_what_its_own_proof_did_not_accept_is_not_accepted_on_the_same_examples(
    proven: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was tested behind one that is not proven: what it reaches alone does not count."""
    recipe = Recipe(runtime=OnnxRuntime())
    drop = Measurement(value=0.0, lower=0.0, upper=0.001, unit="1", samples=6)

    def judged(verdict: Verdict) -> Judgement:
        return Judgement(limit="drop", bound=0.01, measurement=drop, verdict=verdict, reason="as counted")

    def tested(*arguments: object) -> prove.Tested:
        alone = judged(Verdict.ACCEPT)
        return prove.Tested(
            folder=Path(), recipe=recipe, quality=SimpleNamespace(), outputs=(REPORTED,), judgement=alone
        )

    monkeypatch.setattr(module, "tested_quality", tested)
    monkeypatch.setattr(module, "measure_rows", lambda workshop, subject, contestants: ({"baseline": None}, 0.0))
    proof = SimpleNamespace(
        examples=6,
        goal=Goal(),
        judgements=(judged(proven),),
        predictions=digest([REPORTED]),
        row=lambda role: SimpleNamespace(recipe=recipe.to_json()),
    )
    artifact = SimpleNamespace(folder=Path(), recipe=recipe.to_json())
    found = _verified(SimpleNamespace(), SimpleNamespace(), artifact, proof, False, lambda line: None)
    assert found.judgements[0].verdict is proven
