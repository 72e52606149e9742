"""The straight line: a task, a goal and a budget in; an artifact, its proof and the frontier out."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from temper.core import artifact as artifacts
from temper.core import catalog
from temper.core.artifact import Artifact
from temper.core.context import Context
from temper.core.errors import TemperError, TrialError
from temper.core.facts import Fact, has_training
from temper.core.goal import Goal
from temper.core.journal import Journal
from temper.core.proof import Proof
from temper.core.runtime import Runtime
from temper.core.search import Search, Space
from temper.core.task import Task
from temper.core.technique import Technique
from temper.core.trial import Trial
from temper.hardware import cores
from temper.hardware.detect import missing_runtimes
from temper.pipeline.bookkeeping import (
    check_measured,
    close_unfinished,
    command,
    counted,
    frozen,
    inapplicable,
    outcome,
    remember,
    untried_runtimes,
)
from temper.pipeline.budget import Budget, budgeted
from temper.pipeline.choose import Choice, choose
from temper.pipeline.evaluate import evaluate
from temper.pipeline.explain import explained
from temper.pipeline.interruptions import host_errors, interruptible
from temper.pipeline.prepare import Prepared, prepare
from temper.pipeline.prove import digest
from temper.pipeline.run_folder import RunFolder, opened
from temper.pipeline.subject import subject
from temper.pipeline.task_loading import load_task
from temper.pipeline.workshop import Workshop
from temper.report.page import write_report

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came back: the artifact, its proof, and the trials between safe and bold that the proof was opened for."""

    folder: Path
    artifact: Artifact
    proof: Proof
    frontier: tuple[Trial, ...]

    @property
    def report(self) -> Path:
        return self.folder / artifacts.REPORT


def optimize(
    task: Task | str,
    goal: Goal | None = None,
    *,
    out: Path | str,
    budget: str | float = "10m",
    trials: int | None = None,
    seed: int = 0,
    resume: bool = False,
    allow_unproven: bool = False,
    search: str = "staged",
    runtimes: Sequence[str] | None = None,
    tell: Tell | None = None,
) -> Result:
    """Find the artifact that is best for the goal and provably keeps its limits on this machine.

    `task` is a Task, or `file.py:name`. The search takes `budget` (such as "10m") or exactly `trials` trials, which
    is reproducible. `out` is a new folder; with `resume` it holds the run to go on with. `runtimes` are those that may
    be used, in place of all that are installed and need no request. `tell` receives lines of progress. Ctrl-C ends the
    search and proves the best so far; a second one leaves at once, and nothing is lost.

    Raises: TaskError, UsageError, BudgetError or HostError, each saying what to do; never for a trial that fails, and
    never because nothing better was found: then the unchanged model on its best runtime comes back.
    """
    goal = goal or Goal()
    cores.check(goal.conditions.threads)
    tell = tell or _tell_on_stderr
    reference = task if isinstance(task, str) else None
    with host_errors():
        loaded = load_task(task) if isinstance(task, str) else task
        folder = opened(Path(out), resume=resume)
        with folder.locked():
            prepared = _prepared(loaded, goal, seed, folder, runtimes, resume=resume, tell=tell)
            words = command(reference, goal, folder.root, budget, trials, seed, runtimes, allow_unproven=allow_unproven)
            journal = Journal(folder.journal)
            try:
                remember(journal, prepared, goal, seed, words)
                if journal.fact("proof") is None:
                    limit = budgeted(budget, trials, sum(trial.cost_s for trial in journal.trials()))
                    part = prepared.training
                    told = None if part is None else part.stored_in(folder)
                    with Workshop(folder, goal, prepared.target, seed, training=told, tell=tell) as workshop:
                        _search(workshop, journal, prepared, limit, search, tell)
                        choice = _prove(workshop, journal, prepared, allow_unproven, tell)
                        _explain(workshop, journal, choice, tell)
                    _ship(folder, journal, prepared, choice)
                else:
                    tell(f"{folder.root}: this run is finished; nothing to resume")
                return _finished(folder, journal, goal)
            finally:
                journal.close()


def _prepared(
    task: Task, goal: Goal, seed: int, folder: RunFolder, runtimes: Sequence[str] | None, *, resume: bool, tell: Tell
) -> Prepared:
    """The task, checked; a new run whose task is at fault leaves no folder behind, so that it can be called again."""
    for sentence in missing_runtimes().values():
        tell(sentence)
    try:
        return prepare(task, goal, seed, folder, tell, runtimes)
    except TemperError:
        if not resume:
            shutil.rmtree(folder.root, ignore_errors=True)
        raise


def _search(workshop: Workshop, journal: Journal, prepared: Prepared, budget: Budget, search: str, tell: Tell) -> None:
    """Ask for recipes and try them until the budget ends, nothing is left to propose, or someone presses Ctrl-C.

    Once the proof was opened there is no more searching, whatever the budget: its data would guide it.
    """
    close_unfinished(journal)
    if journal.fact("frozen") is not None:
        tell("the proof of this run was opened before: its candidates stay as they are")
        return
    space = space_of(prepared, workshop.seed)
    if journal.fact("inapplicable") is None:
        journal.note(inapplicable=inapplicable(space))
        for name, reason in journal.fact("inapplicable").items():
            tell(f"not tried: {name}: {reason}")
    strategy = catalog.get(Search, search)()
    on_selection = subject(
        prepared.module, prepared.parts.selection, "selection", prepared.metric, prepared.graph.schema, workshop.seed
    )
    with interruptible(tell) as interrupted:
        while budget.allows(len(counted(journal))) and not interrupted():
            recipe = strategy.propose(space, counted(journal))
            if recipe is None:
                break
            number = journal.start(recipe)
            tell(f"trial {number}: {recipe}")
            time_s = budget.trial_s(trains=any(has_training in each.needs for each in recipe.techniques))
            try:
                trial = evaluate(workshop, on_selection, number, recipe, journal.trials(), time_s=time_s)
            except KeyboardInterrupt:
                break
            if trial.outcome == "failed" and budget.left_s() <= 0:
                trial = replace(trial, outcome="unfinished", reason=f"the budget ended: {trial.reason}")
            journal.end(trial)
            tell(f"trial {number}: {outcome(trial, journal.trials(), workshop.goal)}")
    check_measured(journal)


def space_of(prepared: Prepared, seed: int) -> Space:
    """Everything that is installed, with the facts of this graph."""
    target, part = prepared.target, prepared.training
    training = None
    if part is not None:
        training = part.training(seed=seed, deadline=math.inf, folder=None, tell=lambda line: None)

    def holds(fact: Fact, runtime: Runtime) -> bool:
        context = Context(
            runtime=runtime, target=target, seed=seed, calibration=prepared.calibration, training=training
        )
        return fact.holds(prepared.graph, context)

    return Space(
        goal=prepared.goal,
        runtimes=tuple(catalog.get(Runtime, name) for name in target.runtimes),
        techniques=tuple(catalog.get(Technique, name) for name in catalog.names(Technique)),
        holds=holds,
        is_fast=target.is_fast,
    )


def _prove(workshop: Workshop, journal: Journal, prepared: Prepared, allow_unproven: bool, tell: Tell) -> Choice:
    candidates = frozen(journal, workshop.goal)
    on_proof = subject(
        prepared.module, prepared.parts.proof, "proof", prepared.metric, prepared.graph.schema, workshop.seed
    )
    return choose(workshop, on_proof, candidates, journal.trials(), allow_unproven=allow_unproven, tell=tell)


def _explain(workshop: Workshop, journal: Journal, choice: Choice, tell: Tell) -> None:
    """Note why what ships is as fast and as accurate as it is; a run is no worse for lacking that."""
    if journal.fact("explanation") is not None:
        return
    tell("explaining what ships, layer by layer")
    try:
        explanation = explained(workshop, choice.tested.recipe, choice.tested.folder, "selection")
    except TrialError as error:
        tell(f"it could not be explained: {error}")
    else:
        journal.note(explanation=explanation.to_json())


def _ship(folder: RunFolder, journal: Journal, prepared: Prepared, choice: Choice) -> None:
    """Put artifact and baseline in their places, with the proof, and note it last of all."""
    untried = untried_runtimes(journal, prepared.target.runtimes)
    short = [f"The search ended before these runtimes were tried with the unchanged model: {', '.join(untried)}"]
    proof = Proof(
        task=prepared.name,
        metric=prepared.metric.name,
        goal=prepared.goal,
        seed=journal.fact("seed"),
        fingerprint=prepared.fingerprint,
        examples=len(prepared.parts.proof),
        rows=choice.rows,
        judgements=choice.judgements,
        steps=choice.steps,
        predictions=digest(choice.tested.outputs),
        environment=prepared.target.to_json(),
        notes=(choice.reason, *(short if untried else ()), *prepared.parts.notes),
    )
    for place, tested in ((folder.artifact, choice.tested), (folder.baseline, choice.baseline)):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tested.folder, place)
    for file, output in zip(folder.predictions(len(choice.tested.outputs)), choice.tested.outputs):
        np.save(file, output, allow_pickle=False)
    (folder.artifact / artifacts.PROOF).write_text(json.dumps(proof.to_json(), indent=2), encoding="utf-8")
    artifacts.seal(folder.artifact)
    journal.note(proof=proof.to_json())


def _finished(folder: RunFolder, journal: Journal, goal: Goal) -> Result:
    """The result of a run whose proof is noted; its report is written if it is not there yet."""
    if not folder.report.exists():
        write_report(journal, folder.report)
    folder.tidy()
    return Result(
        folder=folder.root,
        artifact=Artifact.open(folder.artifact),
        proof=Proof.from_json(journal.fact("proof")),
        frontier=tuple(frozen(journal, goal)),
    )


def _tell_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
