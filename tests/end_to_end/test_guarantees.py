"""What a run promises when it is stopped, resumed, shared or given an unusual model."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper import Data, Goal, Task, load
from temper.core.artifact import Artifact
from temper.core.errors import TaskError, UsageError
from temper.core.goal import Conditions
from temper.core.journal import Journal
from temper.pipeline.bench import bench
from temper.pipeline.optimize import Result, optimize
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.workshop import Workshop
from tests.end_to_end.conftest import GOAL, recipe

WIDTH = 6


def data(count: int = 90) -> Data:
    generator = np.random.default_rng(0)
    return Data((generator.standard_normal((count, WIDTH)).astype(np.float32), generator.integers(0, 3, count)))


def quietly(task: Task | str, out: Path, goal: Goal = GOAL, **options: object) -> Result:
    return optimize(task, goal, out=out, trials=options.pop("trials", 1), tell=lambda line: None, **options)


class OfOneBatch(nn.Module):
    """Forward that only works for batches of one size, written into it as a number."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch, self.layer = batch, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(self.batch, WIDTH))


@pytest.mark.usefixtures("quick_proof")
@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_of_one_batch(batch: int, tmp_path: Path) -> None:
    goal = Goal(minimize="size", max_drop=0.4, conditions=Conditions(batch=batch))
    model = OfOneBatch(batch)
    result = quietly(Task(model, data()), tmp_path / "run", goal)
    assert result.artifact.schema.batch == batch
    x = torch.randn(batch, WIDTH)
    with torch.no_grad():
        assert np.allclose(load(result.folder)(x.numpy()), model(x).numpy(), atol=1e-4)


def test_a_model_of_another_batch_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises((UsageError, TaskError), match="batch"):
        quietly(Task(OfOneBatch(2), data()), tmp_path / "run", Goal(conditions=Conditions(batch=3)))


@pytest.mark.usefixtures("quick_proof")
def test_a_model_in_double_precision_is_optimized_in_single(tmp_path: Path) -> None:
    model = nn.Linear(WIDTH, 3).double()
    result = quietly(Task(model, data()), tmp_path / "run", Goal(minimize="size", max_drop=0.4))
    assert result.artifact.schema.inputs[0].dtype == "float32"
    assert model.weight.dtype is torch.float64


def test_a_task_at_fault_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TaskError):
        quietly(Task(nn.Linear(WIDTH + 1, 3), data()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_share_a_run(tmp_path: Path, task_file: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with RunFolder(out).locked(), pytest.raises(UsageError, match="another process"):
        quietly(f"{task_file}:task", out, resume=True)


def test_a_finished_run_belongs_to_its_task(run: Result, task_file: Path) -> None:
    with pytest.raises(UsageError, match="model differ"):
        quietly(f"{task_file}:other_weights", run.folder, resume=True)
    again = quietly(f"{task_file}:task", run.folder, resume=True)
    assert again.proof.predictions == run.proof.predictions


class Stopped(Exception):
    pass


@pytest.mark.usefixtures("third_party", "quick_proof")
def test_after_the_proof_was_opened_nothing_more_is_tried(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the proof's data would guide the search. What was lost meanwhile is built again."""
    recipes = [recipe(), recipe("quantization.post_training")]
    monkeypatch.setenv("TEMPER_TEST_RECIPES", json.dumps(recipes))
    out = tmp_path / "run"

    def stop(line: str) -> None:
        if line.startswith("proof:") and "ACCEPT" in line:
            raise Stopped

    with pytest.raises(Stopped):
        optimize(f"{task_file}:task", GOAL, out=out, trials=1, search="scripted", tell=stop)
    shutil.rmtree(out / "work" / "trials")
    result = quietly(f"{task_file}:task", out, resume=True, trials=2, search="scripted")
    journal = Journal(out / "journal.sqlite")
    assert journal.fact("frozen") == [1]
    assert len(journal.trials()) == 1
    journal.close()
    assert result.proof.verdict == "ACCEPT"


@pytest.mark.usefixtures("third_party", "quick_proof")
def test_what_the_budget_cut_off_is_tried_again(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPER_TEST_RECIPES", json.dumps([recipe()]))
    out = tmp_path / "run"
    words = {"out": out, "search": "scripted", "tell": lambda line: None}
    with pytest.raises(UsageError, match="--resume"):
        optimize(f"{task_file}:task", GOAL, budget="2s", **words)
    result = optimize(f"{task_file}:task", GOAL, budget="10m", resume=True, **words)
    outcomes = [trial.outcome for trial in Journal(out / "journal.sqlite").trials()]
    assert outcomes[-1] == "measured"
    assert set(outcomes[:-1]) <= {"unfinished"}
    assert result.proof.row("baseline").title == "onnxruntime"


def test_a_bench_of_two_tasks_times_both(tmp_path: Path, task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task's own model is built, not the first one twice."""
    wider = task_file.with_name("wider.py")
    wider.write_text(task_file.read_text(encoding="utf-8").replace("hidden=256", "hidden=16"), encoding="utf-8")
    sizes: list[int] = []
    time = Workshop.time

    def noted(self: Workshop, artifacts: Sequence[Path], part: str, *, rounds: int, block_s: float) -> object:
        # Short blocks will do: only which models are timed is asked here.
        sizes.extend(Artifact.open(each).size_bytes for each in artifacts)
        return time(self, artifacts, part, rounds=rounds, block_s=0.002)

    monkeypatch.setattr(Workshop, "time", noted)
    result = bench([f"{task_file}:task", f"{wider}:task"], Conditions(), rounds=5, tell=lambda line: None)
    half = len(result.rows) // 2
    assert min(sizes[:half]) > 5 * max(sizes[half : 2 * half])
