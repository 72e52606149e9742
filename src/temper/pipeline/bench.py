"""Latency of artifacts and unchanged models against each other, in interleaved rounds."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from temper.core import catalog
from temper.core.artifact import MANIFEST, Artifact
from temper.core.errors import TrialError, UsageError
from temper.core.goal import Conditions, Goal
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.schema import Schema
from temper.hardware.detect import this_host
from temper.pipeline.prepare import prepare
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.task_loading import load_task
from temper.pipeline.workshop import Workshop

BLOCK_S = 0.025
BUILD_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Benched:
    """One contestant: seconds a call, and its ratio to the first one."""

    title: str
    latency: Measurement
    ratio: Measurement


@dataclass(frozen=True, kw_only=True)
class Bench:
    """All contestants, and the ratio that two copies of the first differ by at most."""

    rows: tuple[Benched, ...]
    noise_floor: float


def bench(
    contestants: Sequence[str],
    conditions: Conditions,
    *,
    rounds: int,
    trust: bool = False,
    tell: Callable[[str], None],
) -> Bench:
    """Time artifacts (by folder) and the unchanged models of tasks (by `file.py:name`) on every float runtime.

    All run in the same interleaved rounds on made-up inputs that fit their schema. Raises: UsageError for something
    that is neither; ArtifactError and TaskError as loading them does, and native code needs `trust`.
    """
    with tempfile.TemporaryDirectory(prefix="temper-bench-") as scratch:
        place = RunFolder(Path(scratch))
        found: dict[str, Path] = {}
        with Workshop(place, Goal(conditions=conditions), this_host(), seed=0) as workshop:
            for name in contestants:
                folder = Path(name)
                if _is_artifact(folder):
                    artifact = Artifact.open(folder)
                    artifact.check_trust(trust)
                    check_length(name, artifact.schema, conditions.length)
                    found[f"{name}: {Recipe.from_json(artifact.recipe)}"] = artifact.folder
                elif ":" in name:
                    found |= _built(RunFolder(place.root / f"task-{len(found)}"), name, conditions, tell)
                else:
                    raise UsageError(f"{name!r} is neither a folder with an artifact nor a task such as file.py:name")
            tell(f"timing {len(found)} contestants in {rounds} interleaved rounds")
            paths = list(found.values())
            *timings, again = workshop.time([*paths, paths[0]], "none", rounds=rounds, block_s=BLOCK_S)
        same = again.ratio_to(timings[0])
        noise_floor = max(abs(same.lower - 1), abs(same.upper - 1))
        rows = tuple(
            Benched(title=title, latency=timing.latency(), ratio=timing.ratio_to(timings[0], noise_floor))
            for title, timing in zip(found, timings)
        )
    return Bench(rows=rows, noise_floor=noise_floor)


def _is_artifact(folder: Path) -> bool:
    return any((each / MANIFEST).is_file() for each in (folder, folder / "artifact"))


def check_length(name: str, schema: Schema, length: int | None) -> None:
    """Raise UsageError for inputs that cannot be made up, because their length is dynamic and not said."""
    if schema.dynamic_length and length is None:
        raise UsageError(
            f"{name} takes inputs of any length ({'; '.join(map(str, schema.inputs))}), and they are made up here: say "
            "how long they are to be, such as --length 128"
        )


def _built(place: RunFolder, reference: str, conditions: Conditions, tell: Callable[[str], None]) -> dict[str, Path]:
    """The task's unchanged model on every runtime that can run it; each task has a folder and processes of its own."""
    goal = Goal(conditions=conditions)
    prepared = prepare(load_task(reference), goal, 0, place, tell)
    check_length(reference, prepared.graph.schema, conditions.length)
    built = {}
    with Workshop(place, goal, prepared.target, seed=0) as workshop:
        for number, name in enumerate(prepared.target.runtimes):
            recipe = Recipe(runtime=catalog.get(Runtime, name)())
            try:
                workshop.build(recipe, place.trial(number), time_s=BUILD_S)
            except TrialError as error:
                tell(f"{reference} on {name}: {error}")
                continue
            built[f"{reference}: {recipe}"] = place.trial(number)
    return built
