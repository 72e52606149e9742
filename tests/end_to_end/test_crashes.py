"""`kill -9` at any moment loses at most the trial in flight."""

import multiprocessing
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from temper.core.errors import UsageError
from temper.core.goal import Conditions, Goal
from temper.core.journal import Journal
from temper.core.proof import Proof, Verdict
from temper.pipeline.optimize import optimize
from tests.end_to_end.conftest import GOAL, recipe
from tests.end_to_end.crashing import run_once

FLOAT = [recipe(), {"techniques": [], "runtime": {"name": "onnxruntime", "optimization": "extended"}}]
QUANTIZED = [
    {"techniques": [{"name": "quantization.post_training", "ranges": ranges}], "runtime": {"name": "onnxruntime"}}
    for ranges in ("minmax", "percentile", "mse")
]
RECIPES = [*FLOAT, *QUANTIZED]
MOMENTS = {
    "start": ("started", 1.5),
    "trial": (": onnxruntime", 3.0),
    "ended": ("drop +", 2.0),
    "proof": ("proof:", 3.0),
}
"""After which line of progress to kill, and within how many seconds. What never comes gives way to the proof."""
STAGES = [*("start", "trial", "ended") * 7, *("proof", "proof", "start") * 3]
"""Of the thirty kills. In each three of the search one trial ends, so that all of it is reached."""


class Victim:
    """A run in a process of its own, which can be killed and resumed on the same folder."""

    def __init__(self, task: str, folder: Path, distribution: Path) -> None:
        self.task, self.out, self.distribution = task, folder / "run", distribution
        self.said = folder / "said"
        self.mark = uuid4().hex
        # Torch is imported once, in the server that the runs are forked from: thirty imports would take a minute.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.end_to_end.crashing"])

    def start(self) -> BaseProcess:
        self.said.unlink(missing_ok=True)
        resume = (self.out / "journal.sqlite").exists()
        if not resume:
            shutil.rmtree(self.out, ignore_errors=True)
        words = (self.task, str(self.out), str(self.distribution), RECIPES, self.mark, str(self.said), resume)
        process = self.context.Process(target=run_once, args=words)
        process.start()
        return process

    def wait_for(self, process: BaseProcess, sign: str) -> None:
        """Until the run says so or, what comes after everything else, opens the proof; or until it ends."""
        while process.is_alive():
            said = self.said.read_text(encoding="utf-8") if self.said.exists() else ""
            if sign in said or "proof:" in said:
                return
            time.sleep(0.01)

    def workers(self) -> list[psutil.Process]:
        """The living processes that were started by this run, found by a mark in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TEMPER_TEST_MARK") == self.mark and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def ended(self) -> dict[int, str]:
        """The journal's lines of trials that ended, as they are written in the file."""
        if not (self.out / "journal.sqlite").exists():
            return {}
        with closing(sqlite3.connect(self.out / "journal.sqlite")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'ended'").fetchone():
                return {}
            return dict(database.execute("SELECT number, trial FROM ended"))


@pytest.fixture
def victim(task_file: Path, tmp_path: Path, distribution: Path) -> Iterator[Victim]:
    victim = Victim(f"{task_file}:task", tmp_path, distribution)
    yield victim
    for process in victim.workers():
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thirty_kills(victim: Victim) -> None:
    chance = random.Random(5)
    known: dict[int, str] = {}
    kills = 0
    for stage in STAGES:
        sign, within = MOMENTS[stage]
        process = victim.start()
        victim.wait_for(process, sign)
        process.join(chance.uniform(0, within))
        process.kill()
        process.join()
        kills += process.exitcode == -9
        assert process.exitcode in (-9, 0), victim.said.read_text(encoding="utf-8")
        assert_no_orphans(victim)
        after = victim.ended()
        assert known.items() <= after.items(), "a trial that had ended was lost or changed"
        known = after
        if process.exitcode == 0:
            break
    final = victim.start()
    final.join(200)
    assert final.exitcode == 0, victim.said.read_text(encoding="utf-8")
    assert kills >= len(STAGES) / 2
    assert known.items() <= victim.ended().items()
    assert_no_orphans(victim)
    journal = Journal(victim.out / "journal.sqlite")
    finished = [trial.recipe.key for trial in journal.trials() if trial.outcome != "interrupted"]
    assert len(finished) == len(set(finished)), "a recipe that had ended was tried again"
    assert all(trial.outcome in ("measured", "interrupted") for trial in journal.trials())
    assert not journal.unfinished()
    assert Proof.from_json(journal.fact("proof")).verdict is Verdict.ACCEPT
    journal.close()
    assert (victim.out / "artifact" / "proof.json").is_file()


def assert_no_orphans(victim: Victim) -> None:
    """Children die with their parent: at once where Linux sees to it, else as soon as they look at their input."""
    patience = time.monotonic() + 10
    while left := victim.workers():
        assert time.monotonic() < patience, f"left behind: {left}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def begun(task_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped before its first trial had ended."""
    out = tmp_path_factory.mktemp("begun") / "run"

    def stop(line: str) -> None:
        if line.startswith("trial 1"):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        optimize(f"{task_file}:task", GOAL, out=out, trials=1, tell=stop)
    return out


@pytest.mark.parametrize(
    ("name", "goal", "seed", "different"),
    [
        ("other_weights", GOAL, 0, "model"),
        ("task", Goal(minimize="size", max_drop=0.04), 0, "goal"),
        ("task", Goal(minimize="size", max_drop=0.05, conditions=Conditions(batch=2)), 0, "goal"),
        ("task", GOAL, 1, "seed"),
        ("few", GOAL, 0, "proof data"),
    ],
)
def test_another_task_is_not_resumed(
    begun: Path, task_file: Path, name: str, goal: Goal, seed: int, different: str
) -> None:
    with pytest.raises(UsageError, match=f"run of another task: {different} differ"):
        optimize(f"{task_file}:{name}", goal, out=begun, trials=1, seed=seed, resume=True, tell=lambda line: None)


def test_a_new_run_needs_a_new_folder(begun: Path, task_file: Path, cli) -> None:
    done = cli("optimize", f"{task_file}:task", "--out", begun)
    assert done.code == 2, done
    assert "--resume" in done.err
    done = cli("optimize", f"{task_file}:task", "--out", begun.parent / "nothing", "--resume")
    assert done.code == 2, done
    assert "holds no run to resume" in done.err


def test_the_journal_is_append_only(begun: Path) -> None:
    with closing(sqlite3.connect(begun / "journal.sqlite")) as database:
        for table in ("facts", "started"):
            for change in (f"UPDATE {table} SET at = 0", f"DELETE FROM {table}"):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    database.execute(change)
