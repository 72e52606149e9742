import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from temper.core.errors import UsageError
from temper.core.journal import TABLES, Journal
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.trial import Trial
from temper.runtimes.onnxruntime import OnnxRuntime

RECIPE = Recipe(runtime=OnnxRuntime())


def ended(number: int) -> Trial:
    drop = Measurement(value=0.0, lower=float("-inf"), upper=float("inf"), unit="accuracy", samples=3)
    measurements = {"drop": drop}
    return Trial(number=number, recipe=RECIPE, outcome="measured", measurements=measurements, executed={"int8": 2})


def test_trials_and_facts_survive(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.note(seed=3)
    journal.note(goal={"max_drop": 0.01})
    first, second = journal.start(RECIPE), journal.start(RECIPE)
    journal.end(ended(first))
    with closing(Journal(tmp_path / "j")) as other:  # while the first is still open, as after a kill
        assert other.trials() == [ended(first)]
        assert other.unfinished() == [(second, RECIPE)]
        assert list(other.facts()) == ["seed", "goal"]
        assert other.fact("goal") == {"max_drop": 0.01}
        assert other.fact("proof") is None
    journal.close()


def test_nothing_is_changed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.note(seed=3)
    number = journal.start(RECIPE)
    journal.end(ended(number))
    with pytest.raises(sqlite3.IntegrityError):
        journal.note(seed=4)
    with pytest.raises(sqlite3.IntegrityError):
        journal.end(ended(number))
    journal.close()
    with closing(sqlite3.connect(tmp_path / "j")) as database:
        for table in TABLES:
            for change in (f"UPDATE {table} SET at = 0", f"DELETE FROM {table}"):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    database.execute(change)


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("dear diary, " * 100, encoding="utf-8")
    with pytest.raises(UsageError, match="is not a journal that can be used"):
        Journal(tmp_path / "j")
