"""The program of a building process: apply a recipe to a copy of the graph, export it and say what will execute."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from temper.core import artifact
from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.goal import Conditions
from temper.core.graph import Graph
from temper.core.recipe import Recipe
from temper.core.target import Target
from temper.core.technique import applied
from temper.graph.facts import has_quantizers
from temper.graph.storage import load
from temper.measure.child import serve


def build(
    graph: str,
    calibration: Sequence[str],
    recipe: Mapping[str, Any],
    folder: str,
    target: Mapping[str, Any],
    conditions: Mapping[str, int],
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
    for technique in steps.techniques:
        current = applied(technique, current, context)
    place = Path(folder)
    steps.runtime.export(current, place)
    executed = steps.runtime.executed(place, current.schema)
    if has_quantizers.holds(current, context) and not executed.get("int8"):
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


@cache
def _loaded(folder: str) -> Graph:
    return load(Path(folder))


if __name__ == "__main__":
    serve({"build": build})
