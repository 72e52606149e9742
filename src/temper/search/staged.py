"""Float runtimes first, then every technique on every runtime, then one change at a time.

The first stage finds the baseline. The second tries each chain of techniques with its default knobs on each runtime,
the runtime that was fastest in float first; whatever would win but misses a limit is repaired at once, with all the
techniques that prepare for it or restore what it lost, and what is still in doubt after the chains gets other values of
the knobs that cost no speed. The best then gets one technique more, or one auxiliary technique less, as long as that
makes it better. What trains comes next, where something would still win and loses too much, and for the least size with
fewer and fewer bits. Runtimes that compile for tens of seconds come after the others, and those that are far behind in
float come last. The third stage makes one change at a time (a knob, or a technique more) to two trials: the best that
keeps the limits, and the best that misses them. Last come the neighbours of default recipes that could not be measured:
another value of a knob may be what makes them work.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from temper.core.frontier import baseline
from temper.core.knobs import Plug
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.search import Search, Space, untried
from temper.core.technique import Technique
from temper.core.trial import Trial

P = TypeVar("P", bound=Plug)
CERTAIN = 2.0
"""How far the drop must stay under its limit, in units of the distance from its estimate to its bound.

The selection part errs by one such unit, and the proof, on other examples, asks for another one.
"""
FAR_BEHIND = 3.0
"""No technique was seen to make up for a float runtime that takes this many times as long as the best one."""


@dataclass(frozen=True, kw_only=True)
class StagedSearch(Search):
    """Staged proposals: cheap and certain ones first, local moves around the best after that."""

    reference = "local search from the best point of independent choices"

    def propose(self, space: Space, history: Sequence[Trial]) -> Recipe | None:
        return untried(_stages(space, history), history, space)


def _stages(space: Space, history: Sequence[Trial]) -> Iterator[Recipe]:
    near, far = _by_distance(space, history)
    for compiles in (False, True):
        runtimes = [each for each in space.runtimes if each.compiles == compiles]
        yield from _float_runtimes(space, history, runtimes)
        yield from _repairs(space, history)
        yield from _chains(space, [each for each in near if each.compiles == compiles])
        yield from _touches(space, history, compiles=compiles)
        yield from _variations(space, history, compiles=compiles)
        yield from _trainings(space, history, [each for each in near if each.compiles == compiles])
    yield from _moves(space, history)
    yield from _rescues(space, history, near)
    yield from _chains(space, far)


def _float_runtimes(space: Space, history: Sequence[Trial], runtimes: Sequence[type[Runtime]]) -> Iterator[Recipe]:
    """Every runtime as it comes, and in float32 where that is not what it does by default.

    Then those that are not far behind in the other float types that they may be asked for.
    """
    for runtime in runtimes:
        default = runtime()
        yield Recipe(runtime=default)
        if not default.full_precision:
            exact = next((each for each in _neighbours(default, free=False) if each.full_precision), None)
            if exact is not None:
                yield Recipe(runtime=exact)
    for near in _by_distance(space, history)[0]:
        if type(near) in runtimes:
            others = (each for each in _neighbours(near, free=False) if each.arithmetic != near.arithmetic)
            yield from (Recipe(runtime=each) for each in others)


def _by_distance(space: Space, history: Sequence[Trial]) -> tuple[list[Runtime], list[Runtime]]:
    """The runtimes, best in float first, and apart from them those that are far behind or could not run at all."""
    best = baseline(history, space.goal)
    reached = {runtime: _float_objective(runtime(), space, history) for runtime in space.runtimes}
    limit = float("inf") if best is None else FAR_BEHIND * best.objective(space.goal)
    ranked = sorted(space.runtimes, key=lambda each: reached[each])
    near = [each() for each in ranked if reached[each] < limit]
    return near, [each() for each in ranked if reached[each] >= limit]


def _float_objective(runtime: Runtime, space: Space, history: Sequence[Trial]) -> float:
    """The best that the runtime reached with the unchanged model, at any of its knobs; infinite if it was not run."""
    floats = (each for each in history if each.measured and not each.recipe.techniques)
    own = (each.objective(space.goal) for each in floats if each.recipe.runtime.name == runtime.name)
    return min(own, default=float("inf"))


def _trainings(space: Space, history: Sequence[Trial], near: Sequence[Runtime]) -> Iterator[Recipe]:
    """What takes minutes, on the runtimes where something quicker would win and loses too much.

    For the least size on every runtime, with fewer and fewer bits, of which what trains needs less than what does not.
    """
    names = {each.recipe.runtime.name for each in _winning_misses(space, history)}
    yield from _chains(space, [each for each in near if each.name in names], slow=True)
    if space.goal.minimize == "size":
        for recipe in _chains(space, near, slow=True):
            yield from _narrowed(recipe, space, history)


def _narrowed(recipe: Recipe, space: Space, history: Sequence[Trial]) -> Iterator[Recipe]:
    """The recipe with fewer bits in a knob that counts them, a step at a time for as long as limits are kept."""
    for index, technique in enumerate(recipe.techniques):
        for knob in technique.knobs():
            if knob.unit != "bit" or knob.among is None:
                continue
            fewer = knob.among[: knob.among.index(getattr(technique, knob.name))]
            if not fewer:
                continue
            narrower = _with(recipe, index, dataclasses.replace(technique, **{knob.name: fewer[-1]}))
            yield narrower
            if any(each.recipe == narrower and each.within(space.goal) for each in history):
                yield from _narrowed(narrower, space, history)


def _chains(space: Space, runtimes: Sequence[Runtime], *, slow: bool = False) -> Iterator[Recipe]:
    # Who asks for most is most specific, and gains most where it fits.
    techniques = sorted(space.techniques, key=lambda each: len(each.needs), reverse=True)
    chains = {
        (runtime, chain): None
        for runtime in runtimes
        for technique in techniques
        if not technique.auxiliary and technique.slow == slow and (chain := space.chain(technique, runtime)) is not None
    }
    for runtime, chain in chains:
        # A technique that only leads to another is not worth a trial of its own: runtimes do such things themselves.
        if not any(other != chain and other[: len(chain)] == chain for _, other in chains):
            yield Recipe(techniques=tuple(technique() for technique in chain), runtime=runtime)


def _repairs(space: Space, history: Sequence[Trial]) -> Iterator[Recipe]:
    """What would win but misses a limit, with every technique that may help it; one by one if all together fail.

    So is the best that keeps the limits, as long as the proof may still find its loss to be too large. What trains is
    not trained again for the sake of an aid: it makes up for losses itself.
    """
    missed = [each for each in _winning_misses(space, history) if not _trains(each.recipe)]
    for trial in (*sorted(missed, key=lambda each: each.objective(space.goal)), *_doubtful(space, history)):
        whole = space.aided(trial.recipe)
        if whole == trial.recipe:
            continue
        yield whole
        if any(each.recipe == whole and each.outcome == "failed" for each in history):
            yield from space.aids(trial.recipe)


def _trains(recipe: Recipe) -> bool:
    """Whether something in it takes minutes, other than an aid."""
    return any(each.slow and not each.auxiliary for each in recipe.techniques)


def _improvable(space: Space, history: Sequence[Trial]) -> list[Trial]:
    """The best that keeps the limits, unless it was trained: whatever is done to that takes as long again."""
    best = _best_inside(space, history)
    return [] if best is None or _trains(best.recipe) else [best]


def _doubtful(space: Space, history: Sequence[Trial]) -> list[Trial]:
    return [each for each in _improvable(space, history) if _may_fail(each.drop, space.goal.max_drop)]


def _may_fail(drop: Measurement, limit: float) -> bool:
    return drop.value + CERTAIN * (drop.upper - drop.value) > limit


def _touches(space: Space, history: Sequence[Trial], *, compiles: bool) -> Iterator[Recipe]:
    """The winner that loses too much by least, and the one that may yet do so, at another value of a free knob.

    What compiles has its turn after all others.
    """
    for trial in (*_repairable(space, history), *_doubtful(space, history)):
        if trial.recipe.runtime.compiles <= compiles and _may_fail(trial.drop, space.goal.max_drop):
            yield from _changed(trial.recipe, free=True)


def _variations(space: Space, history: Sequence[Trial], *, compiles: bool) -> Iterator[Recipe]:
    """The best that keeps the limits with one technique more, or without one of those that only help others."""
    for best in _improvable(space, history):
        if best.recipe.runtime.compiles > compiles:
            continue
        present = best.recipe.techniques
        for longer in space.insertions(best.recipe):
            if not any(each.auxiliary or each.slow for each in longer.techniques if each not in present):
                yield longer
        yield from space.removals(best.recipe)


def _moves(space: Space, history: Sequence[Trial]) -> Iterator[Recipe]:
    """One change: to the best trial within the limits, and to the better one that misses them by least.

    Nothing is put beside training: what comes behind it aims at the outputs of the graph without quantizers, which is
    not the network that was trained.
    """
    best = _best_inside(space, history)
    for trial in (*([] if best is None else [best]), *_repairable(space, history)):
        yield from _changed(trial.recipe, free=False)
        if not _trains(trial.recipe):
            yield from space.insertions(trial.recipe)


def _repairable(space: Space, history: Sequence[Trial]) -> list[Trial]:
    """The one that would win and misses the limits by least, if there is one."""
    return sorted(_winning_misses(space, history), key=lambda each: each.drop.value)[:1]


def _best_inside(space: Space, history: Sequence[Trial]) -> Trial | None:
    """The best tuned trial that keeps the limits."""
    inside = [each for each in history if each.recipe.techniques and each.within(space.goal)]
    return min(inside, key=lambda each: each.objective(space.goal), default=None)


def _winning_misses(space: Space, history: Sequence[Trial]) -> list[Trial]:
    """The tuned trials that miss a limit and are better in the objective than all that keep them."""
    inside = [each.objective(space.goal) for each in history if each.within(space.goal)]
    bar = min(inside, default=float("inf"))
    tuned = [each for each in history if each.measured and each.recipe.techniques]
    return [each for each in tuned if not each.within(space.goal) and each.objective(space.goal) < bar]


def _rescues(space: Space, history: Sequence[Trial], runtimes: Sequence[Runtime]) -> Iterator[Recipe]:
    """One knob changed from each chain of default knobs whose trials failed or were dropped."""
    outcomes: dict[str, set[str]] = {}
    for trial in history:
        outcomes.setdefault(trial.recipe.key, set()).add(trial.outcome)
    for recipe in _chains(space, runtimes):
        found = outcomes.get(recipe.key, set())
        if found & {"failed", "dropped"} and "measured" not in found:
            for free in (True, False):
                yield from _changed(recipe, free=free)


def _changed(recipe: Recipe, *, free: bool) -> Iterator[Recipe]:
    for index, technique in enumerate(recipe.techniques):
        for neighbour in _neighbours(technique, free=free):
            yield _with(recipe, index, neighbour)
    for runtime in _neighbours(recipe.runtime, free=free):
        yield dataclasses.replace(recipe, runtime=runtime)


def _with(recipe: Recipe, index: int, technique: Technique) -> Recipe:
    """The recipe with this technique in that place."""
    return dataclasses.replace(
        recipe, techniques=(*recipe.techniques[:index], technique, *recipe.techniques[index + 1 :])
    )


def _neighbours(plug: P, *, free: bool) -> Iterator[P]:
    """The plug with one knob at another value: the next ones up and down for a number, any for a choice."""
    for knob in plug.knobs():
        if knob.among is None or knob.free != free:
            continue
        here = knob.among.index(getattr(plug, knob.name))
        ordered = knob.type in (int, float)
        values = knob.among[max(here - 1, 0) : here + 2] if ordered else knob.among
        for other in values:
            if other != knob.among[here]:
                yield dataclasses.replace(plug, **{knob.name: other})
