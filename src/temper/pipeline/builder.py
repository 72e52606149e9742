"""The program of a building process: apply a recipe to a copy of the graph, export it and say what will execute."""

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from temper.core import artifact
from temper.core.context import Context
from temper.core.errors import NoEffect, TemperError, TrialError
from temper.core.explanation import Layer
from temper.core.facts import has_training, is_onnx
from temper.core.goal import Conditions
from temper.core.graph import Graph
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.schema import Array, Schema
from temper.core.target import Target
from temper.core.technique import Technique, applied
from temper.core.training import Training
from temper.graph.conversions import kept_in
from temper.graph.facts import has_quantizers
from temper.graph.onnx.facts import control_flow
from temper.graph.onnx.folding import prepared
from temper.graph.onnx.layers import placed
from temper.graph.onnx.program import feeds_of, onnx_model
from temper.graph.onnx.sensitivity import layers_of_file
from temper.graph.sensitivity import MOST, few, layers_of
from temper.graph.storage import load, save
from temper.measure.child import serve, tell
from temper.pipeline.task_loading import load_task
from temper.pipeline.training import TrainingPart

ONNX_FILE = "model.onnx"
CONVERSIONS = "conversions"
"""The folder, beside the stored graph's, of what equal graphs were converted to: it goes when the run is tidied."""
TRAINED = "trained"
"""The one of what training techniques made."""
TRAINING_SHARE = 0.8
"""The share of the time for a build that may be trained; the rest is for what stands around it."""


def build(
    graph: str,
    calibration: Sequence[str],
    recipe: Mapping[str, Any],
    folder: str,
    target: Mapping[str, Any],
    conditions: Mapping[str, Any],
    seed: int,
    training: Mapping[str, Any] | None,
    limit_s: float,
) -> dict[str, int]:
    """Write the artifact that the recipe makes of the stored graph; how many operators run in each precision.

    Techniques that train get most of the time. Raises: NoEffect if a technique changed nothing, or if a quantized graph
    runs no integer kernel.
    """
    steps = Recipe.from_json(recipe)
    current = _loaded(graph)
    context = _context(steps, calibration, target, seed, training, current.schema, TRAINING_SHARE * limit_s)
    if is_onnx.holds(current, context) and not steps.runtime.reads_onnx:
        raise TrialError(
            f"runtime {steps.runtime.name} runs torch programs, and an ONNX file has none: the file itself runs in "
            "runtimes that read ONNX"
        )
    current = [current, *(made for _, made in _worked(graph, steps, context))][-1]
    place = Path(folder)
    with kept_in(Path(graph).parent / CONVERSIONS):
        steps.runtime.export(current, place)
    executed = _executed(steps.runtime, place, current)
    if has_quantizers.holds(current, context) and not any(each.startswith("int") for each in executed):
        raise NoEffect(f"{steps}: the graph is quantized, but {steps.runtime.name} executes no operator in integers")
    artifact.write(
        place,
        schema=current.schema,
        runtime=steps.runtime,
        conditions=Conditions(**conditions),
        recipe=recipe,
        environment=target,
    )
    return dict(executed)


def explain(
    graph: str,
    calibration: Sequence[str],
    recipe: Mapping[str, Any],
    folder: str,
    target: Mapping[str, Any],
    batch: int,
    seed: int,
    training: Mapping[str, Any] | None,
    limit_s: float,
) -> list[dict[str, Any]]:
    """The layers of the artifact in the folder, made of the stored graph by the recipe, as JSON.

    What the quantizers lose is measured on as many calibration inputs as fit into the time.
    """
    steps = Recipe.from_json(recipe)
    current = reference = _loaded(graph)
    context = _context(steps, calibration, target, seed, training, current.schema, math.inf)
    for technique, current in _worked(graph, steps, context):
        # What training made of the weights is no error of their quantizers.
        if has_training in technique.needs or not has_quantizers.holds(current, context):
            reference = current
    arrays = context.calibration or ()
    return [asdict(layer) for layer in _layers(current, reference, arrays, Path(folder), batch, limit_s)]


def _context(
    steps: Recipe,
    calibration: Sequence[str],
    target: Mapping[str, Any],
    seed: int,
    training: Mapping[str, Any] | None,
    schema: Schema,
    time_s: float,
) -> Context:
    arrays = tuple(np.load(file, allow_pickle=False) for file in calibration)
    return Context(
        runtime=steps.runtime,
        target=Target.from_json(target),
        seed=seed,
        calibration=arrays or None,
        training=None if training is None else _training(training, schema, seed, time_s),
    )


def _training(told: Mapping[str, Any], schema: Schema, seed: int, time_s: float) -> Training:
    """The training part of the task, made again here."""
    part = _part(told["reference"], told["kept"], tuple(told["selection"]), told["targets"], told["metric"], schema)
    deadline = time.monotonic() + time_s
    return part.training(seed=seed, deadline=deadline, folder=Path(told["checkpoints"]), tell=tell)


@cache
def _part(
    reference: str, kept: str | None, selection: tuple[str, ...], targets: str | None, metric: str, schema: Schema
) -> TrainingPart:
    return TrainingPart(
        task=load_task(reference),
        kept=None if kept is None else np.load(kept, allow_pickle=False),
        selection=tuple(np.load(file, allow_pickle=False) for file in selection),
        targets=None if targets is None else np.load(targets, allow_pickle=False),
        schema=schema,
        metric=metric,
    )


def _worked(stored: str, steps: Recipe, context: Context) -> Iterator[tuple[Technique, Graph]]:
    """Each technique of the recipe with the graph that it left. What was trained is kept, and trained once."""
    current = _loaded(stored)
    for count, technique in enumerate(steps.techniques, start=1):
        if has_training in technique.needs:
            # Knobs of the runtime change how a graph is executed, and not what is trained for its kernels.
            begun = Recipe(techniques=steps.techniques[:count], runtime=type(steps.runtime)())
            current = _trained(Path(stored).parent / TRAINED / begun.key, technique, current, context)
        else:
            current = applied(technique, current, context)
        yield technique, current


def _trained(folder: Path, technique: Technique, graph: Graph, context: Context) -> Graph:
    """What the technique makes of the graph, from the folder where it was kept, else made and kept there."""
    if not folder.exists():
        assert context.training is not None
        assert context.training.folder is not None
        checkpoints = context.training.folder / folder.name
        own = replace(context.training, folder=checkpoints)
        unfinished = folder.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save(applied(technique, graph, replace(context, training=own)), unfinished)
        unfinished.rename(folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return load(folder)


def _layers(
    current: Graph, reference: Graph, arrays: tuple[Array, ...], folder: Path, batch: int, limit_s: float
) -> tuple[Layer, ...]:
    model = onnx_model(current)
    if model is not None:
        feeds = feeds_of(current.schema, arrays, MOST) if arrays else []
        return layers_of_file(model, prepared(reference), feeds, limit_s)
    layers = layers_of(current, reference, few(current, arrays, limit_s, batch), batch)
    file = folder / ONNX_FILE
    return placed(layers, onnx.load(file, load_external_data=False)) if file.exists() else layers


def _executed(runtime: Runtime, place: Path, graph: Graph) -> Mapping[str, int]:
    """What the runtime says that it executes. Raises: TrialError saying why, where it cannot load an ONNX file."""
    try:
        return runtime.executed(place, graph.schema)
    except Exception as error:
        model = onnx_model(graph)
        if model is None or isinstance(error, TemperError):
            raise
        deciding = len(control_flow(model))
        why = f", in which {deciding} nodes decide by value what is run (If, Loop, Scan)" if deciding else ""
        words = " ".join(str(error).split())
        raise TrialError(f"{runtime.name} cannot run the ONNX file{why}: ...{words[-200:]}") from error


@cache
def _loaded(folder: str) -> Graph:
    return load(Path(folder))


if __name__ == "__main__":
    serve({"build": build, "explain": explain})
