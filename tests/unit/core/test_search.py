from dataclasses import dataclass
from typing import ClassVar

from temper.core.facts import Fact, is_torch
from temper.core.goal import Goal
from temper.core.graph import Graph
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.search import Space
from temper.core.technique import Technique
from temper.runtimes.onnxruntime import OnnxRuntime

RAW, CLEAN, PACKED, RARE = (Fact(name, lambda graph, context: False) for name in ("raw", "clean", "packed", "rare"))


@dataclass(frozen=True, kw_only=True)
class Step(Technique):
    name: ClassVar[str] = "step"

    def apply(self, graph: Graph, context: object) -> Graph:
        return graph


def technique(called: str, needs: tuple[Fact, ...], leaves: tuple[Fact, ...]) -> type[Technique]:
    return type(called, (Step,), {"needs": needs, "leaves": leaves, "name": called})


WASH = technique("wash", (RAW,), (CLEAN,))
PACK = technique("pack", (CLEAN,), (PACKED,))
SHIP = technique("ship", (PACKED, CLEAN), ())
LOOP = technique("loop", (RARE,), (RARE,))
HOPE = technique("hope", (RARE,), ())


def chain(wanted: type[Technique], *holding: Fact) -> tuple[str, ...] | None:
    def holds(fact: Fact, runtime: Runtime) -> bool:
        return fact in (is_torch, *holding)

    space = Space(goal=Goal(), runtimes=(OnnxRuntime,), techniques=(SHIP, LOOP, PACK, WASH, HOPE), holds=holds)
    found = space.chain(wanted, OnnxRuntime())
    return None if found is None else tuple(each.name for each in found)


def test_what_is_needed_comes_before_once_each() -> None:
    assert chain(SHIP, RAW) == ("wash", "pack", "ship")
    assert chain(SHIP, CLEAN) == ("pack", "ship")
    assert chain(WASH, RAW) == ("wash",)


def test_what_cannot_be_had() -> None:
    assert chain(SHIP) is None
    assert chain(HOPE, RAW) is None, "a technique that needs what it leaves helps nobody, and must not loop"


def test_facts_and_their_negation() -> None:
    assert ~~RAW == RAW
    assert (~RAW).name == "not raw"
    assert len({RAW, ~RAW, ~~RAW}) == 2


def space_of(*techniques: type[Technique], holding: tuple[Fact, ...]) -> Space:
    def holds(fact: Fact, runtime: Runtime) -> bool:
        return fact in (is_torch, *holding) or (fact.name.startswith("not ") and ~fact not in holding)

    return Space(goal=Goal(), runtimes=(OnnxRuntime,), techniques=techniques, holds=holds)


SMOOTH = type("smooth", (Step,), {"needs": (~PACKED,), "name": "smooth", "auxiliary": True})
MEND = type("mend", (Step,), {"needs": (PACKED,), "name": "mend", "auxiliary": True})
OTHER = technique("other", (~PACKED,), (PACKED,))
TIDY = technique("tidy", (RAW,), (~RAW,))
PACK_ONCE = technique("pack", (CLEAN, ~PACKED), (PACKED,))


def names(recipe: Recipe) -> list[str]:
    return [each.name for each in recipe.techniques]


def test_what_prepares_is_inserted_early_and_what_repairs_late() -> None:
    space = space_of(WASH, PACK_ONCE, OTHER, SMOOTH, MEND, TIDY, holding=(RAW,))
    recipe = Recipe(techniques=(WASH(), PACK_ONCE()), runtime=OnnxRuntime())
    assert space.fits(recipe)
    assert [names(each) for each in space.insertions(recipe)] == [
        ["smooth", "wash", "pack"],
        ["wash", "pack", "mend"],
        ["wash", "tidy", "pack"],
    ], "`other` would pack what `pack` packs, and `tidy` would leave `wash` nothing to do if it came first"
    assert names(space.aided(recipe)) == ["smooth", "wash", "pack", "mend"]


def test_a_recipe_that_lacks_what_a_technique_needs_does_not_fit() -> None:
    space = space_of(WASH, PACK, MEND, holding=(RAW,))
    assert not space.fits(Recipe(techniques=(PACK(),), runtime=OnnxRuntime()))
    assert not space.fits(Recipe(techniques=(MEND(), WASH(), PACK()), runtime=OnnxRuntime()))


def test_what_a_technique_wants_undisturbed_has_not_ended_before_it() -> None:
    grow = type("grow", (Step,), {"needs": (), "leaves": (PACKED,), "undisturbed": (RAW,), "name": "grow"})
    recipe = Recipe(techniques=(TIDY(), grow()), runtime=OnnxRuntime())
    assert not space_of(TIDY, grow, holding=(RAW,)).fits(recipe)
    assert space_of(TIDY, grow, holding=(RAW,)).fits(Recipe(techniques=(grow(), TIDY()), runtime=OnnxRuntime()))
    washed = Recipe(techniques=(WASH(), grow()), runtime=OnnxRuntime())
    assert space_of(WASH, grow, holding=(RAW,)).fits(washed), "what came before left it alone"
    end = technique("end", (), (~RAW,))
    ended = Recipe(techniques=(end(), grow()), runtime=OnnxRuntime())
    assert space_of(end, grow, holding=()).fits(ended), "a model without it has nothing to lose"
