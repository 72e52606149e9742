"""Float runtimes first, then every technique on every runtime, then one knob at a time.

The first stage finds the baseline. The second tries each chain of techniques with its default knobs on each runtime,
the runtime that was fastest in float first. The third moves one knob at a time from two trials: the best that keeps
the limits, and the best that misses them, which is worth repairing only if it would win. Last come the neighbours of
default recipes that could not be measured: another value of a knob may be what makes them work.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from temper.core.knobs import Plug
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.search import Search, Space, untried
from temper.core.trial import Trial

P = TypeVar("P", bound=Plug)


@dataclass(frozen=True, kw_only=True)
class StagedSearch(Search):
    """Staged proposals: cheap and certain ones first, local moves around the best after that."""

    reference = "local search from the best point of independent choices"

    def propose(self, space: Space, history: Sequence[Trial]) -> Recipe | None:
        return untried(_stages(space, history), history)


def _stages(space: Space, history: Sequence[Trial]) -> Iterator[Recipe]:
    yield from _float_runtimes(space)
    yield from _chains(space, history)
    yield from _moves(space, history)
    yield from _rescues(space, history)


def _float_runtimes(space: Space) -> Iterator[Recipe]:
    """Every runtime as it comes, and in float32 where that is not what it does by default."""
    for runtime in space.runtimes:
        default = runtime()
        yield Recipe(runtime=default)
        if not default.full_precision:
            exact = next((each for each in _neighbours(default) if each.full_precision), None)
            if exact is not None:
                yield Recipe(runtime=exact)


def _chains(space: Space, history: Sequence[Trial]) -> Iterator[Recipe]:
    runtimes = sorted(
        (runtime() for runtime in space.runtimes), key=lambda each: _float_objective(each, space, history)
    )
    chains = {
        (runtime, chain): None
        for runtime in runtimes
        for technique in space.techniques
        if (chain := space.chain(technique, runtime)) is not None
    }
    for runtime, chain in chains:
        # A technique that only prepares another is not worth a trial of its own: runtimes do such things themselves.
        if not any(other != chain and other[: len(chain)] == chain for _, other in chains):
            yield Recipe(techniques=tuple(technique() for technique in chain), runtime=runtime)


def _float_objective(runtime: Runtime, space: Space, history: Sequence[Trial]) -> float:
    float_trials = (trial for trial in history if trial.measured and trial.recipe == Recipe(runtime=runtime))
    return min((trial.objective(space.goal) for trial in float_trials), default=float("inf"))


def _moves(space: Space, history: Sequence[Trial]) -> Iterator[Recipe]:
    """One knob changed: from the best trial within the limits, and from a better one that misses them."""
    goal = space.goal
    tuned = [trial for trial in history if trial.measured and trial.recipe.techniques]
    inside = [trial for trial in tuned if trial.within(goal)]
    best = min(inside, key=lambda trial: trial.objective(goal), default=None)
    missed = [trial for trial in tuned if not trial.within(goal)]
    if best is not None:
        missed = [trial for trial in missed if trial.objective(goal) < best.objective(goal)]
    repairable = min(missed, key=lambda trial: trial.drop.value, default=None)
    for trial in (best, repairable):
        if trial is not None:
            yield from _changed(trial.recipe)


def _rescues(space: Space, history: Sequence[Trial]) -> Iterator[Recipe]:
    """One knob changed from each chain of default knobs whose trials failed or were dropped."""
    outcomes: dict[str, set[str]] = {}
    for trial in history:
        outcomes.setdefault(trial.recipe.key, set()).add(trial.outcome)
    for recipe in _chains(space, history):
        found = outcomes.get(recipe.key, set())
        if found & {"failed", "dropped"} and "measured" not in found:
            yield from _changed(recipe)


def _changed(recipe: Recipe) -> Iterator[Recipe]:
    for index, technique in enumerate(recipe.techniques):
        for neighbour in _neighbours(technique):
            techniques = (*recipe.techniques[:index], neighbour, *recipe.techniques[index + 1 :])
            yield dataclasses.replace(recipe, techniques=techniques)
    for runtime in _neighbours(recipe.runtime):
        yield dataclasses.replace(recipe, runtime=runtime)


def _neighbours(plug: P) -> Iterator[P]:
    """The plug with one knob at another value: the next ones up and down for a number, any for a choice."""
    for knob in plug.knobs():
        if knob.among is None:
            continue
        here = knob.among.index(getattr(plug, knob.name))
        ordered = knob.type in (int, float)
        values = knob.among[max(here - 1, 0) : here + 2] if ordered else knob.among
        for other in values:
            if other != knob.among[here]:
                yield dataclasses.replace(plug, **{knob.name: other})
