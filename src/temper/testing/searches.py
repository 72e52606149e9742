"""What must hold for every search: it never repeats itself, ends, resumes and survives trials that fail."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice

from temper.core import catalog
from temper.core.facts import Fact
from temper.core.goal import Goal
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.search import Search, Space
from temper.core.technique import Technique
from temper.core.trial import Outcome, Trial
from temper.testing import plugs

PROPOSALS = 500
"""A search that proposes more than this, in a space of a few techniques and runtimes, counts as endless."""
EXACT = "float32"
"""The float type that is fast everywhere."""
GOALS = (Goal(), Goal(minimize="size", max_drop=0.02), Goal(minimize="memory", limits={"size_bytes": 5e5}))
COURSES: Mapping[str, tuple[Outcome, ...]] = {
    "every trial is measured": ("measured",),
    "every trial fails": ("failed",),
    "every trial is interrupted": ("interrupted",),
    "some trials are dropped": ("measured", "dropped"),
    "trials end in all ways": ("measured", "failed", "measured", "interrupted", "dropped", "measured"),
    "the first trials fail": ("failed", "failed", "measured", "measured", "measured", "measured"),
}


def check(search: type[Search], *, proposals: int = PROPOSALS) -> None:
    """Assert that the search keeps its contract in synthetic spaces, with made-up trials that end in all ways."""
    plugs.check(search, Search)
    for space, name in spaces():
        for course, outcomes in COURSES.items():
            check_course(search, space, outcomes, f"{search.name} with {name}, where {course}", proposals)


def spaces() -> Iterator[tuple[Space, str]]:
    """Spaces of everything in the catalog and of less, for goals and facts that differ."""
    runtimes = tuple(catalog.get(Runtime, name) for name in catalog.names(Runtime))
    techniques = tuple(catalog.get(Technique, name) for name in catalog.names(Technique))
    views: tuple[tuple[str, Callable[[Fact, Runtime], bool]], ...] = (
        ("all facts true", lambda fact, runtime: True),
        ("all facts false", lambda fact, runtime: False),
        ("the negated facts false", lambda fact, runtime: not fact.name.startswith("not ")),
    )
    for goal in GOALS:
        for view, holds in views:
            space = Space(goal=goal, runtimes=runtimes, techniques=techniques, holds=holds)
            yield space, f"the whole catalog, {goal.minimize} to minimize and {view}"
    yield Space(goal=GOALS[0], runtimes=runtimes, techniques=(), holds=views[0][1]), "no technique"
    several = tuple(each for each in runtimes if any(one.arithmetic != EXACT for one in plugs.variants(each)))
    slow = Space(
        goal=GOALS[0], runtimes=several, techniques=techniques, holds=views[2][1], is_fast=lambda kind: kind == EXACT
    )
    yield slow, f"no float type that is faster than {EXACT}"


def check_course(search: type[Search], space: Space, outcomes: Sequence[Outcome], where: str, proposals: int) -> None:
    """Assert that a search whose trials end in these ways, in turn, is sound from the first proposal to the last."""
    history: list[Trial] = []
    for outcome in islice(cycle(outcomes), proposals):
        recipe = propose(search, space, history, where)
        if recipe is None:
            assert history, f"{where} proposes nothing at all"
            return
        check_recipe(recipe, space, history, where)
        history.append(trial_of(len(history) + 1, recipe, outcome, space.goal))
    raise AssertionError(f"{where} does not end within {proposals} proposals")


def propose(search: type[Search], space: Space, history: Sequence[Trial], where: str) -> Recipe | None:
    """The next recipe; asserts that two new searches that are asked with one history answer alike."""
    answers = []
    for _ in range(2):
        given = list(history)
        try:
            answers.append(search().propose(space, given))
        except Exception as error:
            raise AssertionError(
                f"{where} crashed after {len(history)} trials with {type(error).__name__}: {error}"
            ) from error
        assert given == list(history), f"{where} changes the history"
    first, second = answers
    assert first == second, f"{where} answers the same history first with {first} and then with {second}"
    return first


def check_recipe(recipe: Recipe, space: Space, history: Sequence[Trial], where: str) -> None:
    """Assert that a proposal is new, lies in the space and reads back from JSON, and that its float type is fast there.

    The first one is a float baseline.
    """
    repeated = next((trial for trial in history if trial.recipe.key == recipe.key), None)
    assert repeated is None, f"{where} proposes {recipe} again, which was {repeated and repeated.outcome}"
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe, f"{where} proposes {recipe}, which reads back from JSON as {again}"
    assert again.key == recipe.key, f"{where} proposes {recipe}, whose key changes when it is read back from JSON"
    assert type(recipe.runtime) in space.runtimes, f"{where} proposes {recipe}, and may not use that runtime"
    foreign = [str(each) for each in recipe.techniques if type(each) not in space.techniques]
    assert not foreign, f"{where} proposes {recipe}, and may not use {', '.join(foreign)}"
    kind = recipe.runtime.arithmetic
    assert space.is_fast(kind), f"{where} proposes {recipe}, which computes in {kind}, a type that is not fast there"
    baseline = bool(history) or not recipe.techniques
    assert baseline, f"{where} begins with {recipe}; begin with a runtime alone, without which nothing can be compared"


def trial_of(number: int, recipe: Recipe, outcome: Outcome, goal: Goal) -> Trial:
    """A trial of that recipe with made-up measurements, which depend on nothing but the recipe."""
    measurements = {}
    if outcome in ("measured", "dropped"):
        measurements["size_bytes"] = _made_up(recipe, "size", 1e5, 1e6, "B")
        measurements["latency_s"] = _made_up(recipe, "latency", 1e-4, 1e-3, "s")
        measurements["latency_ratio"] = _made_up(recipe, "latency", 0.2, 2.0, "1")
    if outcome == "measured":
        if "memory_bytes" in goal.limits or goal.minimize == "memory":
            measurements["memory_bytes"] = _made_up(recipe, "memory", 1e7, 1e8, "B")
        measurements["score"] = _made_up(recipe, "quality", 0.94, 0.9, "1")
        measurements["drop"] = _made_up(recipe, "quality", -0.01, 0.03, "1")
    reason = "" if outcome == "measured" else f"made up to be {outcome}"
    return Trial(number=number, recipe=recipe, outcome=outcome, reason=reason, cost_s=1.0, measurements=measurements)


def _made_up(recipe: Recipe, quantity: str, low: float, high: float, unit: str) -> Measurement:
    digest = hashlib.sha256(f"{recipe.key} {quantity}".encode()).digest()
    value = low + (high - low) * int.from_bytes(digest[:4], "big") / 2**32
    return Measurement(value=value, lower=value, upper=value, unit=unit, samples=1)
