"""The staged search, with facts that are simply said to hold."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import pytest

from temper.core import catalog
from temper.core.context import Context
from temper.core.facts import Fact
from temper.core.goal import Goal
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.search import Space
from temper.core.technique import Technique
from temper.core.trial import Outcome, Trial
from temper.graph.facts import has_float_layers, has_quantizers
from temper.search.staged import StagedSearch

GOAL = Goal()


def space(holds: Callable[[Fact, Runtime], bool] | None = None, *, techniques: bool = True) -> Space:
    from temper.core.facts import has_calibration, has_integer_runtime, is_torch
    from temper.graph.facts import has_float_layers, has_foldable_batch_norm

    true = {is_torch, has_calibration, has_integer_runtime, has_float_layers, has_foldable_batch_norm}

    def said(fact: Fact, runtime: Runtime) -> bool:
        if fact in (has_integer_runtime, ~has_integer_runtime):
            return (runtime.integers is not None) == (fact == has_integer_runtime)
        return fact in true or (fact.name.startswith("not ") and ~fact not in true)

    names = ("fusion.batch_norm", "quantization.post_training") if techniques else ()
    return Space(
        goal=GOAL,
        runtimes=tuple(catalog.get(Runtime, name) for name in ("onnxruntime", "openvino", "torch_eager")),
        techniques=tuple(catalog.get(Technique, name) for name in names),
        holds=holds or said,
    )


def trial(
    number: int, recipe: Recipe, ratio: float, drop: float = 0.0, outcome: Outcome = "measured", size: float = 1.0
) -> Trial:
    def one(value: float) -> Measurement:
        return Measurement(value=value, lower=value, upper=value, unit="1", samples=9)

    measurements = {"latency_ratio": one(ratio), "drop": one(drop), "size_bytes": one(size)}
    return Trial(number=number, recipe=recipe, outcome=outcome, measurements=measurements)


def run(space: Space, judge: Callable[[Recipe], tuple[float, float]], most: int = 60) -> list[Trial]:
    history: list[Trial] = []
    while len(history) < most and (recipe := StagedSearch().propose(space, history)) is not None:
        history.append(trial(len(history) + 1, recipe, *judge(recipe)))
    return history


def test_float_runtimes_come_first_and_in_full_precision_too() -> None:
    found = run(space(techniques=False), lambda recipe: (1.0, 0.0))
    assert [str(each.recipe) for each in found[:4]] == [
        "onnxruntime",
        "openvino",
        "openvino(precision=f32)",
        "torch_eager",
    ]


def test_a_float_type_that_is_not_fast_on_the_target_is_never_proposed() -> None:
    compiled = replace(space(), runtimes=(catalog.get(Runtime, "aot_inductor"),))

    def proposed(is_fast: Callable[[str], bool]) -> set[str]:
        found = run(replace(compiled, is_fast=is_fast), lambda recipe: (1.0 - 0.1 * len(recipe.techniques), 0.0))
        return {each.recipe.runtime.arithmetic for each in found}

    assert proposed(lambda kind: True) == {"float32", "bfloat16"}
    assert proposed(lambda kind: kind == "float32") == {"float32"}


@pytest.mark.parametrize(("ratio", "tried"), [(1.5, True), (4.0, False)])
def test_a_runtime_not_far_behind_is_tried_in_its_other_float_types(ratio: float, tried: bool) -> None:
    runtimes = tuple(catalog.get(Runtime, name) for name in ("onnxruntime", "torch_compiled"))
    judge = {"onnxruntime": (1.0, 0.0), "torch_compiled": (ratio, 0.0)}
    found = run(replace(space(techniques=False), runtimes=runtimes), lambda recipe: judge[recipe.runtime.name])
    assert ("torch_compiled(precision=bf16)" in [str(each.recipe) for each in found]) == tried


def test_nothing_is_proposed_twice_and_the_space_ends() -> None:
    found = run(space(), lambda recipe: (1.0 - 0.1 * len(recipe.techniques), 0.0))
    keys = [each.recipe.key for each in found]
    assert len(keys) == len(set(keys))
    assert len(found) < 60


def test_the_same_history_brings_the_same_proposal() -> None:
    found = run(space(), lambda recipe: (0.5, 0.0), most=8)
    for length in range(8):
        assert StagedSearch().propose(space(), found[:length]) == found[length].recipe


def test_chains_start_on_the_fastest_runtime_with_what_they_need_before_them() -> None:
    speed = {"onnxruntime": 1.0, "openvino": 0.5, "torch_eager": 9.0}
    found = run(space(), lambda recipe: (speed[recipe.runtime.name], 0.0), most=7)
    tuned = [each.recipe for each in found if each.recipe.techniques]
    assert tuned[0].runtime.name == "openvino"
    assert [each.name for each in tuned[0].techniques] == ["fusion.batch_norm", "quantization.post_training"]


def test_moves_change_one_knob_of_the_best_or_repair_what_would_win() -> None:
    def judge(recipe: Recipe) -> tuple[float, float]:
        bad = any(getattr(each, "ranges", "") == "minmax" for each in recipe.techniques)
        return (0.5, 0.2 if bad else 0.0) if recipe.techniques else (1.0, 0.0)

    found = run(space(), judge)
    assert any(each.recipe.techniques and each.within(GOAL) for each in found), "the one that lost was not repaired"
    for before, after in pairwise(found):
        assert before.recipe != after.recipe


@pytest.mark.parametrize("outcome", ["failed", "dropped"])
def test_defaults_that_could_not_be_measured_still_have_their_neighbours_tried_once(outcome: Outcome) -> None:
    """Last, without repeats, and only around the defaults themselves."""
    history: list[Trial] = []
    while (recipe := StagedSearch().propose(space(), history)) is not None:
        lost = bool(recipe.techniques) and recipe.techniques[-1].ranges == "minmax"
        history.append(trial(len(history) + 1, recipe, 0.5, outcome=outcome if lost else "measured"))
        assert len(history) < 100
    keys = [each.recipe.key for each in history]
    assert len(keys) == len(set(keys))
    ranges = [each.recipe.techniques[-1].ranges for each in history if each.recipe.techniques]
    assert ranges[0] == "minmax"
    assert {"minmax", "percentile", "mse", "entropy"} == set(ranges)


def test_when_every_recipe_fails_the_search_ends() -> None:
    history: list[Trial] = []
    while (recipe := StagedSearch().propose(space(), history)) is not None:
        measured = not recipe.techniques
        history.append(trial(len(history) + 1, recipe, 1.0, outcome="measured" if measured else "failed"))
        assert len(history) < 100
    assert len({each.recipe.key for each in history}) == len(history)
    assert len([each for each in history if each.recipe.techniques]) > 2


def widened(*more: type[Technique]) -> Space:
    """The usual space with more techniques, whose needs are read from what the usual ones leave."""
    usual = space()
    return Space(goal=GOAL, runtimes=usual.runtimes, techniques=(*usual.techniques, *more), holds=usual.holds)


@dataclass(frozen=True, kw_only=True)
class _Mending(Technique):
    name: ClassVar[str] = "mending"
    needs = (has_quantizers,)
    auxiliary = True

    def apply(self, graph: Graph, context: Context) -> Graph:
        return graph


def test_what_would_win_but_misses_the_limit_is_repaired_at_once() -> None:
    def judge(recipe: Recipe) -> tuple[float, float]:
        mended = any(each.name == "mending" for each in recipe.techniques)
        return (0.5, 0.0 if mended else 0.2) if recipe.techniques else (1.0, 0.0)

    found = [each.recipe for each in run(widened(_Mending), judge)]
    first = next(index for index, recipe in enumerate(found) if recipe.techniques)
    assert [each.name for each in found[first + 1].techniques] == [
        "fusion.batch_norm",
        "quantization.post_training",
        "mending",
    ]
    assert not any([each.name for each in recipe.techniques] == ["mending"] for recipe in found)


def test_what_keeps_its_limits_beyond_doubt_needs_no_repair() -> None:
    found = run(widened(_Mending), lambda recipe: (0.5 if recipe.techniques else 1.0, 0.0), most=7)
    assert not any(each.name == "mending" for trial in found for each in trial.recipe.techniques)


@pytest.mark.parametrize(("bound", "mended"), [(0.004, False), (0.007, True), (0.02, True)])
def test_what_the_proof_may_still_reject_is_repaired(bound: float, mended: bool) -> None:
    """An estimate of 0.002 under the limit of 0.01: beyond doubt if the proof may err as much again and still pass."""
    history = run(widened(_Mending), lambda recipe: (0.5 if recipe.techniques else 1.0, 0.002), most=5)
    drop = Measurement(value=0.002, lower=0.0, upper=bound, unit="1", samples=9)
    history[-1] = replace(history[-1], measurements={**history[-1].measurements, "drop": drop})
    proposed = StagedSearch().propose(widened(_Mending), history)
    assert proposed is not None
    assert any(each.name == "mending" for each in proposed.techniques) == mended


@dataclass(frozen=True, kw_only=True)
class _Speeding(Technique):
    name: ClassVar[str] = "speeding"
    needs = (has_float_layers,)

    def apply(self, graph: Graph, context: Context) -> Graph:
        return graph


def test_the_best_gets_one_technique_more_and_does_without_help_that_it_does_not_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Speeding gains something together with quantization alone, and makes mending superfluous, which takes time."""

    def judge(recipe: Recipe) -> tuple[float, float]:
        names = {each.name for each in recipe.techniques}
        if "quantization.post_training" not in names:
            return 1.0, 0.0
        ratio = 0.6 - 0.2 * ("speeding" in names) + 0.1 * ("mending" in names)
        return ratio, 0.0 if names & {"mending", "speeding"} else 0.2

    for name in ("onnxruntime", "torch_eager"):
        monkeypatch.setattr(catalog.get(Runtime, name), "compiles", True)
    found = [each.recipe for each in run(widened(_Mending, _Speeding), judge)]
    names = [{each.name.rpartition(".")[2] for each in recipe.techniques} - {"batch_norm"} for recipe in found]
    both, without = names.index({"post_training", "mending", "speeding"}), names.index({"post_training", "speeding"})
    assert both < without < [recipe.runtime.name for recipe in found].index("onnxruntime")


@dataclass(frozen=True, kw_only=True)
class _Training(Technique):
    name: ClassVar[str] = "training"
    needs = (has_float_layers, ~has_quantizers)
    leaves = (has_quantizers,)
    slow = True

    bits: int = knob(8, among=(2, 3, 4, 8), unit="bit")

    def apply(self, graph: Graph, context: Context) -> Graph:
        return graph


@pytest.mark.parametrize(("least", "tried"), [(2, [4, 3, 2]), (4, [4, 3]), (8, [4])])
def test_for_the_least_size_training_goes_down_in_bits_while_limits_are_kept(least: int, tried: list[int]) -> None:
    """Also where eight bits need no training. What the proof may still reject is not trained again to be mended."""
    usual, history = widened(_Training, _Mending), list[Trial]()
    small = replace(usual, goal=Goal(minimize="size"), runtimes=usual.runtimes[:1])
    while len(history) < 40 and (recipe := StagedSearch().propose(small, history)) is not None:
        bits = [each.bits for each in recipe.techniques if isinstance(each, _Training)]
        width = bits[0] if bits else 8 if recipe.techniques else 32
        drop = Measurement(value=0.2 if width < least else 0.0, lower=0.0, upper=0.2, unit="1", samples=9)
        done = trial(len(history) + 1, recipe, 1.0, size=width)
        history.append(replace(done, measurements={**done.measurements, "drop": drop}) if bits else done)
    trained = [each.recipe for each in history if any(isinstance(part, _Training) for part in each.recipe.techniques)]
    assert [str(each.techniques) for each in trained[: len(tried)]] == [str((_Training(bits=each),)) for each in tried]


def test_nothing_is_put_behind_what_was_trained() -> None:
    """It aims at the graph without quantizers, which is not what was trained."""
    usual = widened(_Training, _Mending)

    def judge(recipe: Recipe) -> tuple[float, float]:
        trained = any(isinstance(each, _Training) for each in recipe.techniques)
        return (0.5, 0.1 if trained else 0.2) if recipe.techniques else (1.0, 0.0)

    found = [[each.name for each in one.recipe.techniques] for one in run(usual, judge)]
    assert ["training"] in found
    assert not any(len(names) > 1 for names in found if "training" in names)


def _touched(history: list[Trial]) -> list[int]:
    """The numbers of the trials in which a free knob stands at another value than its default."""
    ranges = [[getattr(each, "ranges", "minmax") for each in trial.recipe.techniques] for trial in history]
    return [trial.number for trial, values in zip(history, ranges, strict=True) if set(values) - {"minmax"}]


def test_free_knobs_are_turned_when_what_would_win_loses_too_much_and_before_other_changes() -> None:
    history = run(space(), lambda recipe: (0.5 if recipe.techniques else 1.0, 0.2 if recipe.techniques else 0.0))
    chains = [each.number for each in history if each.recipe.techniques][:2]
    assert _touched(history)[:3] == [chains[-1] + 1, chains[-1] + 2, chains[-1] + 3]


def test_what_compiles_is_touched_after_all_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = tuple(catalog.get(Runtime, name) for name in ("openvino", "onnxruntime", "torch_compiled"))
    monkeypatch.setattr(runtimes[1], "compiles", True)
    usual = space()
    several = Space(goal=GOAL, runtimes=runtimes, techniques=usual.techniques, holds=usual.holds)

    def judge(recipe: Recipe) -> tuple[float, float]:
        wins = recipe.techniques and recipe.runtime.name != "openvino"
        return (0.5, 0.2) if wins else (1.0, 0.0)

    history = run(several, judge)
    chains = [each.recipe.runtime.name for each in history[: _touched(history)[0] - 1] if each.recipe.techniques]
    assert chains == ["openvino", "onnxruntime", "torch_compiled"]


def test_a_miss_of_another_limit_turns_no_free_knob() -> None:
    goal = Goal(limits={"size_bytes": 0.5})
    usual = space()
    small = Space(goal=goal, runtimes=usual.runtimes, techniques=usual.techniques, holds=usual.holds)
    assert not _touched(run(small, lambda recipe: (0.5 if recipe.techniques else 1.0, 0.0)))


def test_free_knobs_stay_where_they_are_when_nothing_is_lost() -> None:
    history = run(space(), lambda recipe: (0.5 if recipe.techniques else 1.0, 0.0))
    assert not _touched(history)


def test_a_runtime_far_behind_in_float_comes_last() -> None:
    speed = {"onnxruntime": 1.0, "openvino": 0.9, "torch_eager": 9.0}
    found = run(space(), lambda recipe: (speed[recipe.runtime.name] * (0.5 if recipe.techniques else 1), 0.0))
    tuned = [each.recipe.runtime.name for each in found if each.recipe.techniques]
    assert "torch_eager" not in tuned[:-1]


def test_a_runtime_that_compiles_comes_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.get(Runtime, "onnxruntime"), "compiles", True)
    found = [each.recipe for each in run(space(), lambda recipe: (0.5 if recipe.techniques else 1.0, 0.0))]
    names = [recipe.runtime.name for recipe in found]
    quick = [index for index, recipe in enumerate(found) if recipe.techniques and names[index] == "openvino"]
    assert quick[0] < names.index("onnxruntime")
