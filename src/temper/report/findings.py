"""What a journal says, sorted for telling: the baseline, what ships, and the place of every trial."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from temper.core.frontier import baseline, candidates, frontier
from temper.core.goal import Goal
from temper.core.journal import Journal
from temper.core.measurement import Measurement
from temper.core.proof import Proof, Row
from temper.core.recipe import Recipe
from temper.core.schema import Schema
from temper.core.trial import Trial
from temper.report.words import recipe_in_words


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that the page tells.

    `baseline` is the trial of the best float runtime, `best` the one that ships or, without a proof, the boldest of
    the frontier; both are None where nothing was measured.
    """

    facts: Mapping[str, Any]
    goal: Goal
    trials: tuple[Trial, ...]
    unfinished: tuple[tuple[int, Recipe], ...]
    proof: Proof | None
    frontier: tuple[Trial, ...]
    candidates: tuple[Trial, ...]
    baseline: Trial | None
    best: Trial | None

    @classmethod
    def of(cls, journal: Journal) -> Self:
        facts = journal.facts()
        goal = Goal.from_json(facts["goal"]) if "goal" in facts else Goal()
        trials = tuple(sorted(journal.trials(), key=lambda each: each.number))
        proof = Proof.from_json(facts["proof"]) if "proof" in facts else None
        front = tuple(frontier(trials, goal))
        start, best = baseline(trials, goal), front[-1] if front else None
        if proof is not None:
            start = _trial_of(trials, proof.row("baseline")) or start
            best = _trial_of(trials, proof.row("chosen"))
        return cls(
            facts=facts,
            goal=goal,
            trials=trials,
            unfinished=tuple(journal.unfinished()),
            proof=proof,
            frontier=front,
            candidates=tuple(candidates(trials, goal)),
            baseline=start,
            best=best,
        )

    @property
    def conditions(self) -> str:
        """How everyone was measured, in words."""
        schema = self.task.get("schema")
        return str(self.goal.conditions) if schema is None else self.goal.conditions.of(Schema.from_json(schema))

    @property
    def task(self) -> Mapping[str, Any]:
        task: Mapping[str, Any] = self.facts.get("task", {})
        return task

    @property
    def name(self) -> str:
        return str(self.task.get("name") or "A run without a task")

    @property
    def metric(self) -> str:
        return str(self.task.get("metric", "the metric"))

    @property
    def baseline_ships(self) -> bool:
        """Whether the user's own model is what ships."""
        return self.proof is not None and self.proof.row("chosen").recipe == self.proof.row("baseline").recipe

    def relative(self, trial: Trial) -> Measurement | None:
        """The trial's latency over the baseline's, with the trial's own interval."""
        ratio = trial.measurements.get("latency_ratio")
        if ratio is None or self.baseline is None:
            return None
        unit = self.baseline.measurements["latency_ratio"].value
        return Measurement(
            value=ratio.value / unit,
            lower=ratio.lower / unit,
            upper=ratio.upper / unit,
            unit=ratio.unit,
            samples=ratio.samples,
            details=ratio.details,
        )

    def titled(self, title: str) -> str:
        """The title of a recipe in words, where a trial has that recipe."""
        return next((recipe_in_words(trial.recipe) for trial in self.trials if str(trial.recipe) == title), title)


def _trial_of(trials: tuple[Trial, ...], row: Row) -> Trial | None:
    same = [trial for trial in trials if trial.recipe.to_json() == row.recipe]
    return next((trial for trial in same if trial.measured), None)
