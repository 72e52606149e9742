"""What must hold for every technique: it leaves its source alone, repeats itself, tells the truth and has an effect."""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from temper.core import catalog
from temper.core.context import Context
from temper.core.errors import MissingExtra, NoEffect, TrialError
from temper.core.facts import Installed, is_onnx, is_torch
from temper.core.goal import Goal
from temper.core.graph import Graph
from temper.core.lengths import batches
from temper.core.runtime import IntegerScheme, Runtime
from temper.core.search import Space
from temper.core.technique import Technique, applied
from temper.core.training import Batch, Training
from temper.graph.storage import load, save
from temper.hardware.detect import this_host
from temper.testing import plugs
from temper.testing.bits import contents, differences, outputs_of, same
from temper.testing.graphs import Example, examples
from temper.testing.onnx_files import onnx_examples

SEED = 7
BATCHES = (1, 3)
TRAINING_BATCH = 8


def check(technique: type[Technique]) -> None:
    """Assert that the technique keeps its contract on the graphs of `temper.testing.graphs`, with each of its knobs.

    One that works on ONNX files is tried on those of `temper.testing.onnx_files`. Raises: AssertionError; MissingExtra
    if it needs a package that is not installed, which is no fault of the technique.
    """
    plugs.check(technique, Technique)
    example, *_ = examples()
    for fact in technique.needs:
        if isinstance(fact, Installed) and not fact.holds(example.graph, context_of(example, runtimes()[0])):
            raise MissingExtra(f"{technique.name} is not tried, because this does not hold here: {fact}")
    had_effect = False
    for example in onnx_examples() if is_onnx in technique.needs else examples():
        for runtime in runtimes():
            context = context_of(example, runtime)
            check_needs(technique(), example, context)
            prepared = prepare(technique, example, context)
            if prepared is not None:
                had_effect |= check_default(technique(), prepared, context)
                check_variants(technique, prepared, context)
    assert had_effect, f"{technique.name} had an effect on none of the graphs that it is tried on"


def runtimes() -> tuple[Runtime, ...]:
    """One runtime of the catalog for each integer scheme that there is, and for none."""
    schemes: dict[IntegerScheme | None, Runtime] = {}
    for name in catalog.names(Runtime):
        runtime = catalog.get(Runtime, name)
        schemes.setdefault(runtime.integers, runtime())
    return tuple(schemes.values())


def context_of(example: Example, runtime: Runtime) -> Context:
    """A context with calibration inputs for the example's graph, and training that aims at its own first output."""
    plain = Context(runtime=runtime, target=this_host(), seed=SEED, calibration=example.calibration)
    return replace(plain, training=training_of(example)) if is_torch.holds(example.graph, plain) else plain


def training_of(example: Example) -> Training:
    """Training on the example's calibration inputs, whose targets are what its graph answers."""
    schema = example.graph.schema
    found: list[Batch] = []
    for rows, arrays in batches(schema, example.calibration, schema.batch or TRAINING_BATCH):
        if schema.batch in (None, len(rows)):
            inputs = tuple(map(torch.from_numpy, arrays))
            with torch.no_grad():
                found.append((inputs, example.graph(*inputs)[0].float()))
    return Training(
        batches=lambda size, epoch: found,
        selection=lambda size: found[:1],
        loss=lambda outputs, targets: torch.nn.functional.mse_loss(outputs[0].float(), targets),
        deadline=math.inf,
        folder=None,
        tell=lambda line: None,
    )


def prepare(technique: type[Technique], example: Example, context: Context) -> Example | None:
    """The example behind the techniques that establish what this one needs, or None if that cannot be had."""
    space = Space(
        goal=Goal(),
        runtimes=(type(context.runtime),),
        techniques=tuple(catalog.get(Technique, name) for name in catalog.names(Technique)),
        holds=lambda fact, runtime: fact.holds(example.graph, replace(context, runtime=runtime)),
    )
    chain = space.chain(technique, context.runtime)
    if chain is None:
        return None
    graph = example.graph
    try:
        for before in chain[:-1]:
            graph = applied(before(), graph, context)
    except TrialError:
        return None
    return replace(example, graph=graph)


def check_default(technique: Technique, example: Example, context: Context) -> bool:
    """Assert the whole contract for one technique on one graph where its needs hold; whether it had an effect there.

    The source keeps every bit, the same seed gives the same bits, what is promised to hold afterwards holds, the
    schema stays and the outputs are finite, and the result can be stored.
    """
    where = f"{technique} on the {example.name} graph for {context.runtime}"
    inputs = example.inputs(3, seed=2)
    before = contents(example.graph, inputs)
    assert context.calibration is not None
    given = tuple(array.copy() for array in context.calibration)
    first = attempt(technique, example.graph, context, where, noise=1)
    second = attempt(technique, example.graph, context, where, noise=2)
    changed = differences(before, contents(example.graph, inputs))
    assert not changed, f"{where} changed its source: {changed}"
    assert same(context.calibration, given), f"{where} changed the calibration inputs"
    if first is None or second is None:
        assert first is second, f"{where} raised TrialError at one of two equal attempts"
        return False
    after = contents(first, inputs)
    varied = differences(after, contents(second, inputs))
    assert not varied, f"{where} gave two results for one seed, which differ in {varied}: draw from context.seed alone"
    assert differences(before, after), f"{where} returned the graph as it was; raise NoEffect instead"
    for fact in technique.leaves:
        assert fact.holds(first, context), f"{where} does not leave a graph where this holds: {fact}"
    check_outputs(first, example, where)
    check_storage(first, example, where)
    return True


def attempt(technique: Technique, graph: Graph, context: Context, where: str, *, noise: int) -> Graph | None:
    """The technique's result on a copy of the graph, or None if it raises TrialError; anything else is a crash.

    `noise` puts the global random generators into a state that must not matter.
    """
    state = np.random.get_state()  # noqa: NPY002 -- the global state is what is disturbed here
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        try:
            return technique.apply(graph.copy(), context)
        except TrialError as error:
            if not str(error):
                raise AssertionError(f"{where} raised {type(error).__name__} without a message") from error
            return None
        except Exception as error:
            raise AssertionError(f"{where} crashed with {type(error).__name__}: {error}") from error
        finally:
            np.random.set_state(state)  # noqa: NPY002


def check_outputs(result: Graph, example: Example, where: str) -> None:
    """Assert that the schema is the source's, and that outputs fit it and are finite at other batches as well."""
    assert result.schema == example.graph.schema, f"{where} changed the schema"
    for batch in BATCHES:
        inputs = example.inputs(batch, seed=batch)
        expected = outputs_of(example.graph, inputs)
        try:
            outputs = outputs_of(result, inputs)
        except Exception as error:
            raise AssertionError(f"{where} left a graph that fails at batch {batch}: {error}") from error
        forms = [(output.shape, output.dtype) for output in outputs]
        assert forms == [(each.shape, each.dtype) for each in expected], f"{where} changed the outputs' form: {forms}"
        finite = all(bool(np.isfinite(output).all()) for output in outputs)
        assert finite, f"{where} left a graph whose outputs are not finite"


def check_storage(result: Graph, example: Example, where: str) -> None:
    """Assert that the result can be stored and computes the same bits when it is loaded."""
    inputs = example.inputs(3, seed=4)
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(result, Path(folder))
        except TrialError as error:
            raise AssertionError(f"{where} left a graph that cannot be stored: {error}") from error
        again = load(Path(folder))
    assert same(outputs_of(again, inputs), outputs_of(result, inputs)), f"{where} computes otherwise once stored"


def check_variants(technique: type[Technique], example: Example, context: Context) -> None:
    """Assert that each value of each knob, alone, gives a sound graph or a TrialError."""
    for variant in plugs.variants(technique):
        where = f"{variant} on the {example.name} graph for {context.runtime}"
        result = attempt(variant, example.graph, context, where, noise=3)
        if result is not None:
            check_outputs(result, example, where)


def check_needs(technique: Technique, example: Example, context: Context) -> None:
    """Assert that `applied` refuses the graph with TrialError wherever a need of the technique does not hold.

    Tried are the graph itself and those that other techniques make of it, with calibration inputs and without.
    """
    for graph in _graphs(example, context):
        for given in (context, replace(context, calibration=None)):
            unmet = [fact for fact in technique.needs if not fact.holds(graph, given)]
            if not unmet:
                continue
            try:
                applied(technique, graph, given)
            except NoEffect as error:
                raise AssertionError(f"{technique} raised NoEffect where a need is unmet: {unmet[0]}") from error
            except TrialError:
                continue
            raise AssertionError(f"{technique} was applied to the {example.name} graph, where {unmet[0]} does not hold")


def _graphs(example: Example, context: Context) -> Iterator[Graph]:
    yield example.graph
    for name in catalog.names(Technique):
        other = catalog.get(Technique, name)
        prepared = prepare(other, example, context)
        if prepared is not None:
            try:
                yield applied(other(), prepared.graph, context)
            except TrialError:
                continue
