"""The baseline, and the frontier of trials between safe and bold."""

from collections.abc import Sequence

from temper.core.goal import Goal
from temper.core.recipe import Recipe
from temper.core.trial import Trial

SPEED_TOLERANCE = 0.01
"""A bolder trial must be better by this share, or the safer one stands for both."""
MOST_TESTED = 5
"""How many candidates the proof is opened for, at most."""


def is_float(recipe: Recipe) -> bool:
    """Whether the recipe only chooses a runtime."""
    return not recipe.techniques


def baseline(trials: Sequence[Trial], goal: Goal) -> Trial | None:
    """The user's own model on the runtime that is best for the goal and keeps its limits on the selection part.

    Where none keeps them all, the best that keeps the quality; where none does (all that were tried compute in a
    lower precision), the one that loses least.
    """
    floats = [each for each in trials if each.measured and is_float(each.recipe)]
    inside = [each for each in floats if each.within(goal)]
    kept = inside or [each for each in floats if each.drop.value <= goal.max_drop]
    if kept:
        return min(kept, key=lambda each: each.objective(goal))
    return min(floats, key=lambda each: each.drop.value, default=None)


def full_precision(trials: Sequence[Trial], goal: Goal) -> Trial | None:
    """The user's own model in float32 on the runtime that is best for the goal."""
    kept = [each for each in trials if each.measured and is_float(each.recipe) and each.recipe.runtime.full_precision]
    return min(kept, key=lambda each: each.objective(goal), default=None)


def frontier(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """The trials within the limits that no other beats in both quality and objective, from safest to boldest.

    Safest is the smallest upper bound of the drop on the selection part; each bolder one is better in the objective.
    The baseline always comes first, whether others beat it or not.
    """
    start = baseline(trials, goal)
    if start is None:
        return []
    chosen = [start]
    inside = [each for each in trials if each is not start and each.within(goal)]
    for trial in _safest_first(inside, goal):
        if trial.objective(goal) < chosen[-1].objective(goal) * (1 - SPEED_TOLERANCE):
            chosen.append(trial)
    return chosen


def candidates(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """What the proof is opened for, from safest to boldest, and before all the baseline.

    They are the best of each runtime and then the best of all others that no safer one surely beats, as far as they
    may beat the baseline. The search measured each on its own, at another moment: where intervals overlap, and between
    runtimes, that does not decide which is better. The proof measures them together, and does.
    """
    start = baseline(trials, goal)
    if start is None:
        return []
    inside = [each for each in trials if each.recipe.techniques and each.within(goal) and _may_beat(each, start, goal)]
    ordered = _safest_first(inside, goal)
    kept = [each for index, each in enumerate(ordered) if all(_may_beat(each, one, goal) for one in ordered[:index])]
    best_first = sorted(inside, key=lambda each: each.objective(goal))
    of_runtimes = {each.recipe.runtime.name: each for each in reversed(best_first)}
    firsts = [each for each in best_first if each is of_runtimes[each.recipe.runtime.name]]
    others = [each for each in best_first if each in kept and each not in firsts]
    return [start, *_safest_first((*firsts, *others)[: MOST_TESTED - 1], goal)]


def _safest_first(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    return sorted(trials, key=lambda each: (each.drop.upper, each.objective(goal)))


def _may_beat(trial: Trial, other: Trial, goal: Goal) -> bool:
    """Whether the trial's interval leaves open that it is better in the objective by more than the tolerance."""
    return trial.minimized(goal).lower < other.minimized(goal).upper * (1 - SPEED_TOLERANCE)
