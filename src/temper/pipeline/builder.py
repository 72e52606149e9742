"""The program of a building process: apply a recipe to a copy of the graph, export it and say what will execute."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from temper.core import artifact
from temper.core.context import Context
from temper.core.errors import NoEffect, TemperError, TrialError
from temper.core.explanation import Layer
from temper.core.facts import is_onnx
from temper.core.goal import Conditions
from temper.core.graph import Graph
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.schema import Array
from temper.core.target import Target
from temper.core.technique import applied
from temper.graph.conversions import kept_in
from temper.graph.facts import has_quantizers
from temper.graph.onnx.facts import control_flow
from temper.graph.onnx.folding import prepared
from temper.graph.onnx.layers import placed
from temper.graph.onnx.program import feeds_of, onnx_model
from temper.graph.onnx.sensitivity import layers_of_file
from temper.graph.sensitivity import MOST, few, layers_of
from temper.graph.storage import load
from temper.measure.child import serve

ONNX_FILE = "model.onnx"
CONVERSIONS = "conversions"
"""The folder, beside the stored graph's, of what equal graphs were converted to: it goes when the run is tidied."""


def build(
    graph: str,
    calibration: Sequence[str],
    recipe: Mapping[str, Any],
    folder: str,
    target: Mapping[str, Any],
    conditions: Mapping[str, Any],
    seed: int,
) -> dict[str, int]:
    """Write the artifact that the recipe makes of the stored graph; how many operators run in each precision.

    Raises: NoEffect if a technique changed nothing, or if a quantized graph runs no integer kernel.
    """
    steps = Recipe.from_json(recipe)
    arrays = tuple(np.load(file, allow_pickle=False) for file in calibration)
    host = Target.from_json(target)
    context = Context(runtime=steps.runtime, target=host, seed=seed, calibration=arrays or None)
    current = _loaded(graph)
    if is_onnx.holds(current, context) and not steps.runtime.reads_onnx:
        raise TrialError(
            f"runtime {steps.runtime.name} runs torch programs, and an ONNX file has none: the file itself runs in "
            "runtimes that read ONNX"
        )
    for technique in steps.techniques:
        current = applied(technique, current, context)
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
    limit_s: float,
) -> list[dict[str, Any]]:
    """The layers of the artifact in the folder, made of the stored graph by the recipe, as JSON.

    What the quantizers lose is measured on as many calibration inputs as fit into the time.
    """
    steps = Recipe.from_json(recipe)
    arrays = tuple(np.load(file, allow_pickle=False) for file in calibration)
    context = Context(runtime=steps.runtime, target=Target.from_json(target), seed=seed, calibration=arrays or None)
    current = reference = _loaded(graph)
    for technique in steps.techniques:
        current = applied(technique, current, context)
        if not has_quantizers.holds(current, context):
            reference = current
    return [asdict(layer) for layer in _layers(current, reference, arrays, Path(folder), batch, limit_s)]


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
