"""Too few examples to prove the limit: the baseline ships, unless someone asks for what is not proven."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from temper.core.goal import Goal
from temper.core.proof import Proof, Verdict
from temper.pipeline.optimize import Result, optimize
from tests.end_to_end.conftest import Done, recipe

FEW = Goal(minimize="size", max_drop=0.01)


@pytest.fixture
def run_few(
    third_party: Path, quick_proof: None, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    recipes = [recipe(), recipe("quantization.post_training")]
    monkeypatch.setenv("TEMPER_TEST_RECIPES", json.dumps(recipes))

    def run(**options: object) -> Result:
        return optimize(
            f"{task_file}:few",
            FEW,
            out=tmp_path / "run",
            trials=2,
            search="scripted",
            tell=lambda line: None,
            **options,
        )

    return run


def test_the_baseline_ships(run_few: Callable[..., Result]) -> None:
    proof = run_few().proof
    assert [step["verdict"] for step in proof.steps] == ["INCONCLUSIVE", "INCONCLUSIVE"]
    assert "examples would do" in proof.steps[1]["reason"]
    assert proof.row("chosen").recipe == proof.row("baseline").recipe
    assert "quantization.post_training" not in json.dumps(proof.row("chosen").recipe)
    assert "INCONCLUSIVE" in proof.notes[0]


def test_what_is_not_proven_ships_on_request(
    run_few: Callable[..., Result], task_file: Path, cli: Callable[..., Done]
) -> None:
    result = run_few(allow_unproven=True)
    assert result.proof.verdict is Verdict.INCONCLUSIVE
    assert result.proof.row("chosen").recipe["techniques"][0]["name"] == "quantization.post_training"
    assert "NOT proven" in result.proof.notes[0]
    done = cli("verify", result.folder, "--task", f"{task_file}:few", "--json")
    assert done.code == 1, done
    document = json.loads(done.out)
    assert document["verdict"] == "INCONCLUSIVE"
    assert document["reproduced"] == document["examples"] == 40


def test_an_artifact_without_proof_or_folder_cannot_be_verified(
    run: Result, task_file: Path, tmp_path: Path, cli: Callable[..., Done]
) -> None:
    done = cli("verify", run.folder / "baseline", "--task", f"{task_file}:task")
    assert done.code == 2, done
    assert "carries no proof" in done.err
    done = cli("verify", tmp_path, "--task", f"{task_file}:task")
    assert done.code == 2, done
    assert "holds no artifact" in done.err


def test_a_proof_survives_its_json_form(run: Result) -> None:
    assert Proof.from_json(json.loads(json.dumps(run.proof.to_json()))) == run.proof
