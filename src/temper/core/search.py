"""A search: what to try next, given what was tried."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from temper.core.facts import Fact
from temper.core.goal import Goal
from temper.core.knobs import Plug
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.technique import Technique
from temper.core.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Space:
    """What may be tried: the runtimes and techniques that are installed, and the goal.

    `holds(fact, runtime)` says whether a fact is true of the user's own graph when it is meant for that runtime, and
    `is_fast(kind)` whether the target multiplies clearly faster in that float type than in float32: no recipe may ask
    for another one, which can take minutes for a product.
    """

    goal: Goal
    runtimes: tuple[type[Runtime], ...]
    techniques: tuple[type[Technique], ...]
    holds: Callable[[Fact, Runtime], bool]
    is_fast: Callable[[str], bool] = lambda kind: True

    def chain(self, technique: type[Technique], runtime: Runtime) -> tuple[type[Technique], ...] | None:
        """The technique behind those that establish what it needs, or None if something it needs cannot be had.

        The order of techniques comes from their facts alone: a need that does not hold yet is met by a technique
        that leaves it.
        """
        return self._chain(technique, runtime, ())

    def _chain(
        self, technique: type[Technique], runtime: Runtime, pending: tuple[type[Technique], ...]
    ) -> tuple[type[Technique], ...] | None:
        before: tuple[type[Technique], ...] = ()
        left: set[Fact] = set()
        for need in technique.needs:
            if self.holds(need, runtime) or need in left:
                continue
            providers = (each for each in self.techniques if need in each.leaves and each not in (*pending, technique))
            chains = (self._chain(each, runtime, (*pending, technique)) for each in providers)
            chain = next((each for each in chains if each is not None), None)
            if chain is None:
                return None
            before += tuple(each for each in chain if each not in before)
            left |= {fact for each in chain for fact in each.leaves}
        return (*before, technique)

    def lacking(self, technique: type[Technique]) -> Fact | None:
        """The first need that cannot be met on any runtime, or None if the technique can be tried on one of them."""
        if any(self.chain(technique, runtime()) is not None for runtime in self.runtimes):
            return None
        providers = {fact for each in self.techniques if each is not technique for fact in each.leaves}
        runtimes = [runtime() for runtime in self.runtimes]
        unmet = [need for need in technique.needs if not any(self.holds(need, each) for each in runtimes)]
        return next((need for need in unmet if need not in providers), next(iter(unmet), None))

    def fits(self, recipe: Recipe) -> bool:
        """Whether every technique finds what it needs, in the user's graph or left by those before it.

        What it wants undisturbed must not have ended before it.
        """
        left: dict[Fact, bool] = {}
        for technique in recipe.techniques:
            if not all(left.get(need, self.holds(need, recipe.runtime)) for need in technique.needs):
                return False
            ended = (each for each in technique.undisturbed if not left.get(each, True))
            if any(self.holds(each, recipe.runtime) for each in ended):
                return False
            left |= {each: truth for fact in technique.leaves for each, truth in ((fact, True), (~fact, False))}
        return True

    def insertions(self, recipe: Recipe) -> Iterator[Recipe]:
        """The recipe with one more technique, of default knobs, where the facts allow it.

        One that fits the user's own graph prepares for the others and comes as early as it can; one that needs what
        they leave comes as late as it can.
        """
        present = {type(each) for each in recipe.techniques}
        for technique in self.techniques:
            if technique in present:
                continue
            places = range(len(recipe.techniques) + 1)
            prepares = all(self.holds(need, recipe.runtime) for need in technique.needs)
            for place in places if prepares else reversed(places):
                steps = (*recipe.techniques[:place], technique(), *recipe.techniques[place:])
                longer = replace(recipe, techniques=steps)
                if self.fits(longer):
                    yield longer
                    break

    def removals(self, recipe: Recipe) -> Iterator[Recipe]:
        """The recipe without one of its auxiliary techniques, where what remains finds what it needs."""
        for index, technique in enumerate(recipe.techniques):
            shorter = replace(recipe, techniques=(*recipe.techniques[:index], *recipe.techniques[index + 1 :]))
            if technique.auxiliary and self.fits(shorter):
                yield shorter

    def aided(self, recipe: Recipe) -> Recipe:
        """The recipe with every auxiliary technique that fits and is not slow."""
        while (longer := next(self.aids(recipe), None)) is not None:
            recipe = longer
        return recipe

    def aids(self, recipe: Recipe) -> Iterator[Recipe]:
        """The recipe with one auxiliary technique more, none that is slow."""
        for longer in self.insertions(recipe):
            if any(each.auxiliary and not each.slow for each in longer.techniques if each not in recipe.techniques):
                yield longer


@dataclass(frozen=True, kw_only=True)
class Search(Plug):
    """Ask and tell: `propose` is asked with the whole history, so a resumed run goes on where it was."""

    folder: ClassVar[str] = "temper.search"
    reference: ClassVar[str] = ""

    @abstractmethod
    def propose(self, space: Space, history: Sequence[Trial]) -> Recipe | None:
        """A recipe that no trial of the history has, or None when there is nothing left to try."""


def untried(recipes: Iterator[Recipe], history: Sequence[Trial], space: Space) -> Recipe | None:
    """The first recipe that the history does not hold and whose float type is fast on the target."""
    tried = {trial.recipe.key for trial in history}
    fast = (recipe for recipe in recipes if space.is_fast(recipe.runtime.arithmetic))
    return next((recipe for recipe in fast if recipe.key not in tried), None)
