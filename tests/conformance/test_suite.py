"""The suite itself: plugs that break their contract in one way each are told so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from temper.core.context import Context
from temper.core.graph import Graph
from temper.core.knobs import Plug, knob
from temper.core.recipe import Recipe
from temper.core.runtime import Runner, Runtime
from temper.core.schema import Array, Schema
from temper.core.search import Search, Space
from temper.core.technique import Technique
from temper.core.trial import Trial
from temper.graph.facts import has_quantizers
from temper.testing import plugs, runtimes, searches, techniques
from temper.testing.bits import contents
from temper.testing.graphs import examples


@dataclass(frozen=True, kw_only=True)
class Scaled(Technique):
    """Scale every parameter: honest, and the others are made from it."""

    reference = "made up"
    factor: float = knob(0.5, among=(0.25, 0.5), help="what parameters are multiplied by")

    def apply(self, graph: Graph, context: Context) -> Graph:
        with torch.no_grad():
            for parameter in graph.module.parameters():
                parameter.mul_(self.factor_of(context))
        return graph

    def factor_of(self, context: Context) -> float:
        return self.factor


class Idle(Scaled):
    """Does nothing and says so to nobody."""

    def factor_of(self, context: Context) -> float:
        return 1.0


class Moody(Scaled):
    """Draws from the global random generator."""

    def factor_of(self, context: Context) -> float:
        return float(torch.rand(()))


class Exploding(Scaled):
    """Leaves outputs that are not numbers."""

    def factor_of(self, context: Context) -> float:
        return float("nan")


class Boastful(Scaled):
    """Promises quantizers."""

    leaves = (has_quantizers,)


class Greedy(Scaled):
    """Writes to the calibration inputs."""

    def factor_of(self, context: Context) -> float:
        assert context.calibration is not None
        context.calibration[0][...] = 0
        return self.factor


class Crashing(Scaled):
    """Fails at one value of its knob."""

    def factor_of(self, context: Context) -> float:
        return 1 / (self.factor - 0.25)


class Renaming(Scaled):
    """Returns another schema."""

    def apply(self, graph: Graph, context: Context) -> Graph:
        changed = super().apply(graph, context)
        return Graph(module=changed.module, schema=renamed(graph.schema), example=graph.example)


def renamed(schema: Schema) -> Schema:
    return Schema(inputs=schema.inputs, outputs=schema.outputs, nesting="tuple")


def dataclassed(*kinds: type[Any]) -> list[type[Any]]:
    return [dataclass(frozen=True, kw_only=True)(kind) for kind in kinds]


def test_a_sound_technique_passes() -> None:
    techniques.check(Scaled)


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        *zip(
            dataclassed(Idle, Moody, Exploding, Boastful, Greedy, Crashing, Renaming),
            [
                "returned the graph as it was",
                "two results for one seed",
                "not finite",
                "does not leave a graph where this holds: has quantizers",
                "changed the calibration inputs",
                "crashed with ZeroDivisionError",
                "changed the schema",
            ],
        )
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unsound_technique_is_told(technique: type[Technique], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        techniques.check(technique)


@dataclass(frozen=True, kw_only=True)
class Undocumented(Search):
    reference = "made up"
    steps: int = knob(3, low=1, high=9)

    def propose(self, space: Space, history: Sequence[Trial]) -> Recipe | None:
        return None


@dataclass(frozen=True)
class Positional(Search):
    """A knob by position."""

    reference = "made up"
    steps: int = knob(3, low=1, high=9, help="steps")

    def propose(self, space: Space, history: Sequence[Trial]) -> Recipe | None:
        return None


@dataclass(frozen=True, kw_only=True)
class OffTheList(Positional):
    """A default that is not offered."""

    steps: int = knob(3, among=(1, 2), help="steps")


@dataclass(frozen=True, kw_only=True)
class NoKnob(Undocumented):
    """A field that is no knob."""

    extra: int = 3


@pytest.mark.parametrize(
    ("plug", "message"),
    [
        (Undocumented, "has no docstring"),
        (Positional, "may be given by position"),
        (OffTheList, "its defaults are refused: .* is not one of 1, 2"),
        (NoKnob, "must be written as knob"),
    ],
)
def test_a_malformed_plug_is_told(plug: type[Plug], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        plugs.check(plug, Search)


@dataclass(frozen=True, kw_only=True)
class Repeating(Search):
    """The first runtime, for ever."""

    reference = "made up"

    def propose(self, space: Space, history: Sequence[Trial]) -> Recipe | None:
        return Recipe(runtime=space.runtimes[0]())


class Forgetful(Repeating):
    """Trusts that every trial was measured."""

    def propose(self, space: Space, history: Sequence[Trial]) -> Recipe | None:
        best = min((trial.objective(space.goal) for trial in history), default=None)
        return super().propose(space, history) if best is None else None


class Bold(Repeating):
    """Begins with a technique."""

    def propose(self, space: Space, history: Sequence[Trial]) -> Recipe | None:
        return Recipe(techniques=tuple(each() for each in space.techniques[:1]), runtime=space.runtimes[0]())


class Blind(Repeating):
    """Every runtime at every value of its knobs, whether its float type is fast on the target or not."""

    def propose(self, space: Space, history: Sequence[Trial]) -> Recipe | None:
        every = [each for runtime in space.runtimes for each in plugs.variants(runtime)]
        recipes = {Recipe(runtime=each).key: Recipe(runtime=each) for each in every}
        return next((each for key, each in recipes.items() if all(key != trial.recipe.key for trial in history)), None)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        *zip(
            [Repeating, *dataclassed(Forgetful, Bold, Blind)],
            [
                "again, which was",
                "crashed after 1 trials",
                "begins with",
                "computes in bfloat16, a type that is not fast",
            ],
        )
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unsound_search_is_told(search: type[Search], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        searches.check(search)


@dataclass(frozen=True, kw_only=True)
class Faulty(Runtime):
    """Runs the stored graph, with a fault that can be chosen."""

    package = "torch"
    fault: str = knob("none", among=("none", "bias", "shared", "noise"), help="what is wrong with it")

    def export(self, graph: Graph, folder: Path) -> None:
        from temper.graph.storage import save

        save(graph, folder)

    def load(self, folder: Path, schema: Schema, threads: int) -> Runner:
        from temper.graph.storage import load

        return FaultyRunner(load(folder), self.fault)

    def executed(self, folder: Path, schema: Schema) -> Mapping[str, int]:
        return {"float32": 1}

    def script(self, schema: Schema, threads: int) -> str:
        return "outputs = ()"


class FaultyRunner:
    def __init__(self, graph: Graph, fault: str) -> None:
        self.graph, self.fault = graph, fault
        self.kept: dict[tuple[int, ...], Array] = {}

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        with torch.no_grad():
            outputs = tuple(each.numpy() for each in self.graph(*map(torch.tensor, map(np.ascontiguousarray, arrays))))
        if self.fault == "bias":
            return tuple(output + 0.01 * np.abs(output).max() for output in outputs)
        if self.fault == "noise":
            return tuple(output + np.random.default_rng().random(dtype=np.float32) * 1e-6 for output in outputs)
        if self.fault == "shared":
            first = self.kept.setdefault(outputs[0].shape, outputs[0])
            first[...] = outputs[0]
            return (first, *outputs[1:])
        return outputs


def check_runtime(runtime: Runtime) -> None:
    perceptron = next(example for example in examples() if example.name == "perceptron")
    with runtimes.exported(runtime, perceptron, "it") as folder:
        runtimes.check_agreement(runtime, perceptron, folder, runtimes.EXACT, "it")
        runtimes.check_repeats(runtime, perceptron, folder, "it")
        runtimes.check_ownership(runtime, perceptron, folder, "it")


def test_a_sound_runtime_passes() -> None:
    check_runtime(Faulty())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("bias", "differs from the graph in 'output' by 1.0e-02"),
        ("shared", "a later run changes arrays"),
        ("noise", "two runs of one model on one input disagree"),
    ],
)
def test_an_unsound_runtime_is_told(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_runtime(Faulty(fault=fault))


def test_examples_are_copies_and_repeatable() -> None:
    for one, other in zip(examples(), examples()):
        inputs = one.inputs(2, seed=0)
        assert contents(one.graph, inputs) == contents(other.graph, other.inputs(2, seed=0))
        with torch.no_grad():
            next(one.graph.module.parameters()).zero_()
        assert contents(one.graph, inputs) != contents(other.graph, inputs)
