"""The straight line: a task, a goal and a budget in; an artifact, its proof and the frontier out."""

import errno
import json
import shlex
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from temper.core import artifact as artifacts
from temper.core import catalog
from temper.core.artifact import Artifact
from temper.core.context import Context
from temper.core.errors import BudgetError, HostError, TaskError, UsageError
from temper.core.facts import Fact
from temper.core.frontier import baseline, frontier
from temper.core.goal import Goal
from temper.core.graph import Graph
from temper.core.journal import Journal
from temper.core.proof import Proof
from temper.core.runtime import Runtime
from temper.core.search import Search, Space
from temper.core.target import Target
from temper.core.task import Task
from temper.core.technique import Technique
from temper.core.trial import Trial
from temper.hardware import cores
from temper.hardware.detect import missing_runtimes
from temper.pipeline.budget import Budget, budgeted
from temper.pipeline.choose import Choice, choose
from temper.pipeline.evaluate import evaluate
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
    tell: Tell | None = None,
) -> Result:
    """Find the artifact that is best for the goal and provably keeps its limits on this machine.

    `task` is a Task, or `file.py:name`. The search takes `budget` (such as "10m") or exactly `trials` trials, which
    is reproducible. `out` is a new folder; with `resume` it holds the run to go on with. `tell` receives lines of
    progress. Ctrl-C ends the search and proves the best so far; a second one leaves at once, and nothing is lost.

    Raises: TaskError, UsageError, BudgetError or HostError, each saying what to do; never for a trial that fails, and
    never because nothing better was found: then the unchanged model on its best runtime comes back.
    """
    goal = goal or Goal()
    cores.check(goal.conditions.threads)
    tell = tell or _tell_on_stderr
    reference = task if isinstance(task, str) else None
    with _host_errors():
        loaded = load_task(task) if isinstance(task, str) else task
        folder = opened(Path(out), resume=resume)
        journal = Journal(folder.journal)
        try:
            if journal.fact("proof") is not None:
                tell(f"{folder.root}: this run is finished; nothing to resume")
                return _finished(folder, journal, goal)
            for sentence in missing_runtimes().values():
                tell(sentence)
            prepared = prepare(loaded, goal, seed, folder, tell)
            _remember(journal, prepared, goal, seed, _command(reference, goal, folder, budget, trials, seed))
            spent = sum(trial.cost_s for trial in journal.trials())
            limit = budgeted(budget, trials, spent)
            with Workshop(folder, goal, prepared.target, seed) as workshop:
                _search(workshop, journal, prepared, limit, search, tell)
                choice = _prove(workshop, journal, prepared, allow_unproven, tell)
            _ship(folder, journal, prepared, choice, goal, seed)
            folder.tidy()
            return _finished(folder, journal, goal)
        finally:
            journal.close()


def _search(workshop: Workshop, journal: Journal, prepared: Prepared, budget: Budget, search: str, tell: Tell) -> None:
    """Ask for recipes and try them until the budget ends, nothing is left to propose, or someone presses Ctrl-C."""
    space = space_of(prepared.graph, prepared.target, workshop.goal, workshop.seed, prepared.calibration)
    strategy = catalog.get(Search, search)()
    _close_unfinished(journal)
    on_selection = subject(
        prepared.module, prepared.parts.selection, "selection", prepared.metric, prepared.graph.schema, workshop.seed
    )
    with _interruptible(tell) as interrupted:
        while budget.allows(len(_counted(journal))) and not interrupted():
            history = journal.trials()
            recipe = strategy.propose(space, _counted(journal))
            if recipe is None:
                break
            number = journal.start(recipe)
            tell(f"trial {number}: {recipe}")
            try:
                trial = evaluate(workshop, on_selection, number, recipe, history, time_s=budget.trial_s())
            except KeyboardInterrupt:
                break
            journal.end(trial)
            tell(f"trial {number}: {_outcome(trial, journal.trials(), workshop.goal)}")
    _check_measured(journal.trials(), budget)


def space_of(graph: Graph, target: Target, goal: Goal, seed: int, calibration: tuple[Any, ...] | None) -> Space:
    """Everything that is installed, with the facts of this graph."""

    def holds(fact: Fact, runtime: Runtime) -> bool:
        return fact.holds(graph, Context(runtime=runtime, target=target, seed=seed, calibration=calibration))

    return Space(
        goal=goal,
        runtimes=tuple(catalog.get(Runtime, name) for name in target.runtimes),
        techniques=tuple(catalog.get(Technique, name) for name in catalog.names(Technique)),
        holds=holds,
    )


def _prove(workshop: Workshop, journal: Journal, prepared: Prepared, allow_unproven: bool, tell: Tell) -> Choice:
    on_proof = subject(
        prepared.module, prepared.parts.proof, "proof", prepared.metric, prepared.graph.schema, workshop.seed
    )
    return choose(workshop, on_proof, journal.trials(), allow_unproven=allow_unproven, tell=tell)


def _ship(folder: RunFolder, journal: Journal, prepared: Prepared, choice: Choice, goal: Goal, seed: int) -> None:
    """Put artifact and baseline in their places, with proof and report, and note the proof last of all."""
    proof = Proof(
        task=prepared.name,
        metric=prepared.metric.name,
        goal=goal,
        seed=seed,
        fingerprint=prepared.fingerprint,
        examples=len(prepared.parts.proof),
        rows=choice.rows,
        judgements=choice.judgements,
        steps=choice.steps,
        predictions=digest(choice.tested.outputs),
        environment=prepared.target.to_json(),
        notes=(choice.reason, *prepared.parts.notes),
    )
    for place, tested in ((folder.artifact, choice.tested), (folder.baseline, choice.baseline)):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tested.folder, place)
    for file, output in zip(folder.predictions(len(choice.tested.outputs)), choice.tested.outputs):
        np.save(file, output, allow_pickle=False)
    (folder.artifact / artifacts.PROOF).write_text(json.dumps(proof.to_json(), indent=2), encoding="utf-8")
    artifacts.seal(folder.artifact)
    journal.note("proof", proof.to_json())
    write_report(journal, folder.report)


def _finished(folder: RunFolder, journal: Journal, goal: Goal) -> Result:
    return Result(
        folder=folder.root,
        artifact=Artifact.open(folder.artifact),
        proof=Proof.from_json(journal.fact("proof")),
        frontier=tuple(frontier(journal.trials(), goal)),
    )


def _remember(journal: Journal, prepared: Prepared, goal: Goal, seed: int, command: str) -> None:
    """Note what the run is about; on resuming, refuse another task."""
    known = journal.fact("fingerprint")
    if known is not None:
        changed = [name for name in known if known[name] != prepared.fingerprint.get(name)]
        if changed:
            raise UsageError(
                f"this folder holds the run of another task: {', '.join(changed)} differ. Resume it with the task, "
                "goal and seed that it was started with, or start a new run in another folder"
            )
        return
    journal.note("fingerprint", prepared.fingerprint)
    journal.note("command", command)
    journal.note("goal", goal.to_json())
    journal.note("seed", seed)
    journal.note("target", prepared.target.to_json())
    journal.note("missing", missing_runtimes())
    journal.note("task", prepared.to_json())


def _counted(journal: Journal) -> list[Trial]:
    """The trials that need not be tried again: one that was interrupted gets a second chance, not a third."""
    trials = journal.trials()
    interrupted = [trial.recipe.key for trial in trials if trial.outcome == "interrupted"]
    return [trial for trial in trials if trial.outcome != "interrupted" or interrupted.count(trial.recipe.key) > 1]


def _close_unfinished(journal: Journal) -> None:
    for number, recipe in journal.unfinished():
        reason = "the run was stopped during this trial"
        journal.end(Trial(number=number, recipe=recipe, outcome="interrupted", reason=reason))


def _check_measured(trials: Sequence[Trial], budget: Budget) -> None:
    if any(trial.measured and not trial.recipe.techniques for trial in trials):
        return
    if budget.left_s() <= 0 or not trials:
        raise BudgetError(
            "the search ended before a first trial was measured: give it more time, such as --budget 10m; "
            "what was done is kept, so --resume goes on from here"
        )
    reasons = "; ".join(f"{trial.recipe}: {trial.reason}" for trial in trials if trial.reason)
    raise TaskError(f"no runtime could run the unchanged model, so there is nothing to compare with. {reasons}")


def _outcome(trial: Trial, trials: Sequence[Trial], goal: Goal) -> str:
    """How a trial ended, its latency relative to the best float runtime so far."""
    best = baseline(trials, goal)
    if not trial.measured or best is None:
        return f"{trial.outcome}: {trial.reason}"
    ratio = trial.measurements["latency_ratio"].value / best.measurements["latency_ratio"].value
    size = trial.measurements["size_bytes"].value / 1e6
    kept = "" if trial.within(goal) else ", outside of the limits"
    drop = f"drop {trial.drop.value:+.4f}"
    return f"{ratio:.2f} of the latency of the best float runtime so far, {drop}, {size:.2f} MB{kept}"


@contextmanager
def _interruptible(tell: Tell) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C ends the search after closing the trial in flight; from then on it is Python's own again."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell("stopping: the best so far will be proven; press Ctrl-C again to leave now and --resume later")
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, press)
    except ValueError:  # not the main thread: Ctrl-C arrives elsewhere
        yield lambda: False
        return
    try:
        yield lambda: pressed
    except KeyboardInterrupt:
        if not pressed:
            raise
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _host_errors() -> Iterator[None]:
    """A full or read-only disk, said in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise HostError(
            f"{error.strerror}: {error.filename or 'the run folder'}. Free some space or choose another folder; "
            "what was done is kept, so --resume goes on from here"
        ) from error
    except sqlite3.OperationalError as error:
        raise HostError(f"the journal cannot be written: {error}. Free some space, then go on with --resume") from error


def _command(
    reference: str | None, goal: Goal, folder: RunFolder, budget: str | float, trials: int | None, seed: int
) -> str:
    """The command that repeats the run; further limits can only be given in Python, and are named there."""
    words = ["temper", "optimize", reference or "TASK", "--out", str(folder.root), "--minimize", goal.minimize]
    words += [
        "--max-drop",
        f"{goal.max_drop:g}",
        *(("--budget", str(budget)) if trials is None else ("--trials", str(trials))),
    ]
    words += ["--threads", str(goal.conditions.threads), "--batch", str(goal.conditions.batch), "--seed", str(seed)]
    limits = f"  # with limits={dict(goal.limits)}, from Python" if goal.limits else ""
    return shlex.join(words) + limits


def _tell_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
