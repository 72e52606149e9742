"""The journal of a run: append-only, crash-proof, resumable."""

import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temper.core.errors import UsageError
from temper.core.recipe import Recipe
from temper.core.trial import Trial

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS started (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, recipe TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS ended (number INTEGER PRIMARY KEY REFERENCES started, trial TEXT NOT NULL, at REAL NOT NULL);
"""
TABLES = ("facts", "started", "ended")


class Journal:
    """What a run was asked, what it tried and what came out, in one SQLite file in write-ahead mode.

    Each line is committed when the call that writes it returns, and no line is ever changed: the database itself
    refuses. A process that is killed loses at most the trial that it had started and not ended.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._database = sqlite3.connect(file, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("PRAGMA recursive_triggers=ON")  # else REPLACE would pass the trigger on DELETE
            self._database.executescript(SCHEMA)
            for table in TABLES:
                for change in ("UPDATE", "DELETE"):
                    self._database.execute(
                        f"CREATE TRIGGER IF NOT EXISTS no_{change}_of_{table} BEFORE {change} ON {table} "
                        "BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END"
                    )
        except sqlite3.OperationalError:
            raise  # the disk's fault, not the file's
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{file} is not a journal that can be used: {error}") from error

    def note(self, **facts: Any) -> None:
        """Write facts of the run, all of them or none; a second value under a name raises sqlite3.IntegrityError."""
        rows = [(name, json.dumps(value), time.time()) for name, value in facts.items()]
        self._database.execute("BEGIN")
        try:
            self._database.executemany("INSERT INTO facts VALUES (?, ?, ?)", rows)
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def fact(self, name: str) -> Any:
        """The fact of that name, or None."""
        row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def facts(self) -> Mapping[str, Any]:
        """All facts in the order in which they were written."""
        return {
            name: json.loads(value)
            for name, value in self._database.execute("SELECT name, value FROM facts ORDER BY at")
        }

    def start(self, recipe: Recipe) -> int:
        """Say that a trial of this recipe begins; its number."""
        cursor = self._database.execute(
            "INSERT INTO started (key, recipe, at) VALUES (?, ?, ?)",
            (recipe.key, json.dumps(recipe.to_json()), time.time()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end(self, trial: Trial) -> None:
        """Say how a started trial ended."""
        self._database.execute(
            "INSERT INTO ended VALUES (?, ?, ?)", (trial.number, json.dumps(trial.to_json()), time.time())
        )

    def trials(self) -> list[Trial]:
        """The trials that ended, in order."""
        rows = self._database.execute("SELECT trial FROM ended ORDER BY number")
        return [Trial.from_json(json.loads(row[0])) for row in rows]

    def unfinished(self) -> list[tuple[int, Recipe]]:
        """The trials that were started and did not end: in flight when their process died."""
        rows = self._database.execute(
            "SELECT number, recipe FROM started WHERE number NOT IN (SELECT number FROM ended) ORDER BY number"
        )
        return [(number, Recipe.from_json(json.loads(recipe))) for number, recipe in rows]

    def close(self) -> None:
        self._database.close()
