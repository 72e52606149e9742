"""A technique that crashes, hangs, hoards, raises or does nothing costs its own trial and nothing else."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from temper.core.journal import Journal
from temper.core.proof import Verdict
from temper.core.recipe import Recipe
from temper.core.trial import Trial
from temper.pipeline.evaluate import evaluate
from temper.pipeline.optimize import optimize
from temper.pipeline.prepare import Prepared, prepare
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.subject import subject
from temper.pipeline.task_loading import load_task
from temper.pipeline.workshop import Workshop
from tests.end_to_end.conftest import GOAL, recipe

REASONS = {
    "exits": "ended with exit code 3",
    "segfaults": "killed by signal 11",
    "raises": "ValueError: these weights displease me",
    "refuses": "there was nothing to do",
    "nothing": "",
}


@pytest.mark.usefixtures("third_party", "quick_proof")
def test_the_run_goes_on(task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli) -> None:
    recipes = [
        recipe("broken.exits"),
        recipe(),
        *(recipe(f"broken.{name}") for name in REASONS if name != "exits"),
        recipe("quantization.post_training"),
    ]
    monkeypatch.setenv("TEMPER_TEST_RECIPES", json.dumps(recipes))
    result = optimize(
        f"{task_file}:task", GOAL, out=tmp_path / "run", trials=len(recipes), search="scripted", tell=lambda line: None
    )
    journal = Journal(tmp_path / "run" / "journal.sqlite")
    trials = journal.trials()
    journal.close()
    by_name = {each.recipe.techniques[0].name: each for each in trials if each.recipe.techniques}
    for name, reason in REASONS.items():
        assert by_name[f"broken.{name}"].outcome == "failed", name
        assert reason in by_name[f"broken.{name}"].reason
    assert trials[1].measured
    assert by_name["quantization.post_training"].measured
    assert result.proof.verdict is Verdict.ACCEPT
    assert result.artifact.recipe == by_name["quantization.post_training"].recipe.to_json()
    listed = cli("catalog")
    assert "broken.exits" in listed.out


@pytest.fixture(scope="module")
def prepared(task_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, RunFolder]:
    folder = RunFolder(tmp_path_factory.mktemp("workshop"))
    return prepare(load_task(f"{task_file}:task"), GOAL, 0, folder, lambda line: None), folder


@pytest.fixture
def attempt(prepared: tuple[Prepared, RunFolder]) -> Iterator[Callable[..., Trial]]:
    """Evaluates a recipe with a limit of time, in a workshop with a limit of memory."""
    task, folder = prepared
    on_selection = subject(task.module, task.parts.selection, "selection", task.metric, task.graph.schema, 0)

    def attempted(fields: dict, *, time_s: float = 60, memory_bytes: int | None = None) -> Trial:
        with Workshop(folder, GOAL, task.target, 0, memory_bytes=memory_bytes) as workshop:
            return evaluate(workshop, on_selection, 1, Recipe.from_json(fields), [], time_s=time_s)

    return attempted


def test_one_that_hangs_is_stopped(third_party: Path, attempt: Callable[..., Trial]) -> None:
    began = time.monotonic()
    trial = attempt(recipe("broken.sleeps"), time_s=8)
    assert trial.outcome == "failed"
    assert "did not end within its limit of" in trial.reason
    assert 7 < time.monotonic() - began < 20
    assert trial.cost_s < 20


def test_one_that_hoards_memory_is_stopped(third_party: Path, attempt: Callable[..., Trial]) -> None:
    trial = attempt(recipe("broken.hoards"), memory_bytes=2**30)
    assert trial.outcome == "failed"
    assert "passed its memory limit" in trial.reason
    assert trial.cost_s < 30
