"""Why an artifact is as fast and as accurate as it is."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from temper.core.artifact import Artifact
from temper.core.explanation import Explanation, Kernel, Layer
from temper.core.facts import has_training
from temper.core.journal import Journal
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.measure.profile import profile
from temper.pipeline.advice import advise
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.workshop import MEMORY_SHARE, Workshop


def explained(workshop: Workshop, recipe: Recipe, folder: Path, part: str) -> Explanation:
    """Where the time of an artifact goes on examples of that part, and what the quantizers of its recipe lose.

    Raises: TrialError and its kin if the artifact cannot be profiled, or its graph not be made again.
    """
    call_s, kernels = workshop.profile(folder, part)
    layers = timed(workshop.layers(recipe, folder), kernels)
    trained = any(has_training in each.needs for each in recipe.techniques)
    return _explanation(recipe.runtime, call_s, kernels, layers, trained=trained)


def explain(folder: Path, *, trust: bool = False) -> Explanation:
    """The explanation that a run noted, or, of an artifact that lies alone, its profile on this machine.

    Raises: ArtifactError if there is no sound artifact, or it is native code to be run without `trust`; WorkerError if
    it cannot be run.
    """
    artifact = Artifact.open(folder)
    file = RunFolder(artifact.folder.parent).journal
    noted = _noted(file) if file.is_file() else None
    if noted is not None:
        return Explanation.from_json(noted)
    artifact.check_trust(trust)
    memory = int(MEMORY_SHARE * psutil.virtual_memory().available)
    with tempfile.TemporaryDirectory(prefix="temper-explain-") as scratch:
        log = Path(scratch) / "log"
        call_s, kernels = profile(artifact.folder, (), artifact.conditions, log=log, memory_bytes=memory)
    return _explanation(artifact.runtime, call_s, kernels, ())


def _explanation(
    runtime: Runtime, call_s: float, kernels: tuple[Kernel, ...], layers: tuple[Layer, ...], *, trained: bool = False
) -> Explanation:
    advice, untimed = advise(call_s, kernels, layers, trained=trained), "" if kernels else runtime.untimed
    return Explanation(call_s=call_s, kernels=kernels, layers=layers, advice=advice, untimed=untimed)


def _noted(file: Path) -> Any:
    journal = Journal(file)
    try:
        return journal.fact("explanation")
    finally:
        journal.close()


def timed(layers: Sequence[Layer], kernels: Sequence[Kernel]) -> tuple[Layer, ...]:
    """The layers with the time of the kernels that compute each, and the precision of the slowest of these.

    The time of a kernel that computes several layers is divided among them by their FLOPs, or else evenly.
    """
    shares: dict[str, list[tuple[float, str]]] = {}
    for kernel in kernels:
        inside = [layer for layer in layers if layer.node in kernel.covers]
        flops = [layer.flops or 0 for layer in inside]
        weights = flops if all(flops) else [1] * len(inside)
        for layer, weight in zip(inside, weights):
            shares.setdefault(layer.node, []).append((kernel.seconds * weight / sum(weights), kernel.precision))
    found = ((layer, shares.get(layer.node)) for layer in layers)
    return tuple(
        layer if each is None else replace(layer, seconds=sum(seconds for seconds, _ in each), precision=max(each)[1])
        for layer, each in found
    )
