"""What a run writes into its journal, and what it reads there when it is resumed."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from temper.core import catalog
from temper.core.errors import BudgetError, TaskError, UsageError
from temper.core.facts import is_onnx, is_torch
from temper.core.frontier import baseline, candidates
from temper.core.goal import Goal
from temper.core.journal import Journal
from temper.core.measurement import megabytes
from temper.core.runtime import Runtime
from temper.core.search import Space
from temper.core.trial import Trial
from temper.hardware.detect import missing_runtimes, this_host
from temper.pipeline.prepare import Prepared

CHANCES = 2
"""How often a recipe is tried whose trial the process did not survive: perhaps it is what killed it."""


def remember(journal: Journal, prepared: Prepared, goal: Goal, seed: int, command: str) -> None:
    """Note what the run is about, at once; on resuming, refuse another task.

    Raises: UsageError naming what differs from the task, goal and seed that the run was started with.
    """
    known = journal.fact("fingerprint")
    if known is None:
        journal.note(
            fingerprint=prepared.fingerprint,
            command=command,
            goal=goal.to_json(),
            seed=seed,
            target=prepared.target.to_json(),
            missing=missing_runtimes(),
            task=prepared.to_json(),
        )
        return
    changed = [name for name in known if known[name] != prepared.fingerprint.get(name)]
    if changed:
        raise UsageError(
            f"this folder holds the run of another task: {', '.join(changed)} differ. Resume it with the task, "
            "goal and seed that it was started with, or start a new run in another folder"
        )


def inapplicable(space: Space) -> dict[str, str]:
    """The techniques and runtimes that cannot be tried on this model, with the reasons.

    Those that work on another kind of model are named together.
    """
    lacking = {each.name: fact for each in space.techniques if (fact := space.lacking(each)) is not None}
    foreign = [name for name, fact in lacking.items() if fact == is_torch]
    if foreign:
        foreign += [name for name in this_host().runtimes if not catalog.get(Runtime, name).reads_onnx]
    reasons = {
        name: f"it needs a model of which this is true: {fact}"
        for name, fact in lacking.items()
        if fact not in (is_torch, is_onnx)
    }
    if foreign:
        reasons[", ".join(foreign)] = "these work on torch programs, and an ONNX file has none"
    return reasons


def close_unfinished(journal: Journal) -> None:
    """End the trials that were in flight when the process died."""
    for number, recipe in journal.unfinished():
        reason = "the run was stopped during this trial"
        journal.end(Trial(number=number, recipe=recipe, outcome="interrupted", reason=reason))


def counted(journal: Journal) -> list[Trial]:
    """The trials that are not to be tried again.

    One that the budget cut off may always be tried again; one that the process did not survive gets another chance,
    and as many as it takes while nothing has been measured.
    """
    trials = journal.trials()
    interrupted = [trial.recipe.key for trial in trials if trial.outcome == "interrupted"]
    spent = {key for key in interrupted if interrupted.count(key) >= CHANCES}
    if not any(trial.measured for trial in trials):
        spent = set()
    again = [trial for trial in trials if trial.outcome == "unfinished" or trial.outcome == "interrupted"]
    return [trial for trial in trials if trial not in again or trial.recipe.key in spent]


def frozen(journal: Journal, goal: Goal) -> list[Trial]:
    """The candidates for the proof, from safest to boldest, noted before the proof is opened and never changed."""
    if journal.fact("frozen") is None:
        journal.note(frozen=[trial.number for trial in candidates(journal.trials(), goal)])
    trials = {trial.number: trial for trial in journal.trials()}
    return [trials[number] for number in journal.fact("frozen")]


def check_measured(journal: Journal) -> None:
    """Raise BudgetError or TaskError unless an unchanged model was measured, which everything is compared with."""
    trials = journal.trials()
    if any(trial.measured and not trial.recipe.techniques for trial in trials):
        return
    failed = [trial for trial in counted(journal) if trial.outcome == "failed"]
    if not failed or len(failed) < len(trials):
        raise BudgetError(
            "the search ended before a first trial was measured: give it more time, such as --budget 10m; "
            "what was done is kept, so --resume goes on from here"
        )
    reasons = "; ".join(f"{trial.recipe}: {trial.reason}" for trial in failed)
    raise TaskError(f"no runtime could run the unchanged model, so there is nothing to compare with. {reasons}")


def untried_runtimes(journal: Journal, runtimes: Sequence[str]) -> list[str]:
    """The runtimes on which the unchanged model was neither measured nor seen to fail."""
    tried = {trial.recipe.runtime.name for trial in counted(journal) if not trial.recipe.techniques}
    return [name for name in runtimes if name not in tried]


def outcome(trial: Trial, trials: Sequence[Trial], goal: Goal) -> str:
    """How a trial ended, in words, its latency relative to the best float runtime so far."""
    best = baseline(trials, goal)
    if not trial.measured or best is None:
        return f"{trial.outcome}: {trial.reason}"
    ratio = trial.measurements["latency_ratio"].value / best.measurements["latency_ratio"].value
    size = megabytes(trial.measurements["size_bytes"].value)
    kept = "" if trial.within(goal) else ", outside of the limits"
    drop = f"drop {trial.drop.value:+.4f}"
    return f"{ratio:.2f} of the latency of the best float runtime so far, {drop}, {size}{kept}"


def command(
    reference: str | None,
    goal: Goal,
    out: Path,
    budget: str | float,
    trials: int | None,
    seed: int,
    runtimes: Sequence[str] | None,
    *,
    allow_unproven: bool,
) -> str:
    """The command that repeats the run; further limits can only be given in Python, and are named there."""
    words = ["temper", "optimize", reference or "TASK", "--out", str(out), "--minimize", goal.minimize]
    words += ["--max-drop", f"{goal.max_drop:g}"]
    words += ["--budget", str(budget)] if trials is None else ["--trials", str(trials)]
    words += ["--threads", str(goal.conditions.threads), "--batch", str(goal.conditions.batch), "--seed", str(seed)]
    words += [] if goal.conditions.length is None else ["--length", str(goal.conditions.length)]
    words += ["--runtimes", ",".join(runtimes)] if runtimes is not None else []
    words += ["--allow-unproven"] if allow_unproven else []
    limits = f"  # with limits={dict(goal.limits)}, from Python" if goal.limits else ""
    return shlex.join(words) + limits
