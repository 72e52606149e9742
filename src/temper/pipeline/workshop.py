"""Where artifacts are made and measured: one warm building process, and fresh processes that measure."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from temper.core.artifact import Artifact
from temper.core.errors import ArtifactError
from temper.core.explanation import Kernel, Layer, layer_from_json
from temper.core.goal import Goal
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.schema import Array
from temper.core.target import Target
from temper.core.trial import Trial
from temper.hardware.cores import working_threads
from temper.measure.energy import energy
from temper.measure.latency import Timing, interleaved
from temper.measure.memory import peak_memory
from temper.measure.profile import profile
from temper.measure.worker import Worker
from temper.pipeline.run_folder import RunFolder

MEMORY_SHARE = 0.8
"""The share of the free memory that one worker may take before it is stopped."""
PREDICTION_BATCH = 32
REBUILD_S = 1800.0
SENSITIVITY_S = 20.0
"""How long it may take to measure what each layer's quantizers lose."""


class Workshop:
    """The processes of one run. Every measurement is taken from an exported file, reloaded in a clean process."""

    def __init__(
        self,
        folder: RunFolder,
        goal: Goal,
        target: Target,
        seed: int,
        *,
        memory_bytes: int | None = None,
        training: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.goal, self.target, self.seed = folder, goal, target, seed
        self._training, self._tell = training, tell
        self.memory_bytes = memory_bytes or int(MEMORY_SHARE * psutil.virtual_memory().available)
        self._builder: Worker | None = None

    def build(self, recipe: Recipe, place: Path, *, time_s: float) -> dict[str, int]:
        """Make the artifact of a recipe in a fresh folder; how many operators it executes in each precision.

        Raises: TrialError and its kin; the building process is replaced after a crash, a hang or too much memory.
        """
        executed: dict[str, int] = self._building().call(
            "build",
            time_s=time_s,
            graph=str(self.folder.graph),
            calibration=_names(self.folder.stored("calibration", "input")),
            recipe=recipe.to_json(),
            folder=str(self.folder.fresh(place)),
            target=self.target.to_json(),
            conditions=self.goal.conditions.to_json(),
            seed=self.seed,
            training=self._training,
            limit_s=time_s,
            tell=self._tell,
        )
        return executed

    def layers(self, recipe: Recipe, place: Path) -> tuple[Layer, ...]:
        """What the quantizers of the artifact in that folder do, layer by layer. Raises: as `build` does."""
        layers = self._building().call(
            "explain",
            time_s=REBUILD_S,
            graph=str(self.folder.graph),
            calibration=_names(self.folder.stored("calibration", "input")),
            recipe=recipe.to_json(),
            folder=str(place),
            target=self.target.to_json(),
            batch=self.goal.conditions.batch,
            seed=self.seed,
            training=self._training,
            limit_s=SENSITIVITY_S,
        )
        return tuple(map(layer_from_json, layers))

    def profile(self, artifact: Path, part: str) -> tuple[float, tuple[Kernel, ...]]:
        """Seconds of a whole call of the artifact, and the kernels that its runtime executes."""
        inputs, conditions = self.folder.stored(part, "input"), self.goal.conditions
        return profile(artifact, inputs, conditions, log=self.folder.log, memory_bytes=self.memory_bytes)

    def artifact_of(self, trial: Trial) -> Path:
        """The folder of a trial's artifact, built again if it was lost or half written. Raises: as `build` does."""
        place = self.folder.trial(trial.number)
        try:
            Artifact.open(place)
        except ArtifactError:
            self.build(trial.recipe, place, time_s=REBUILD_S)
        return place

    def predict(self, artifact: Path, part: str, start: int, stop: int, *, time_s: float) -> list[Array]:
        """The artifact's flat outputs for examples start..stop of a stored part, from a fresh process."""
        place = self.folder.root / "work" / part
        with self._runner() as worker:
            worker.call("load", time_s=time_s, folder=str(artifact), threads=self.goal.conditions.threads)
            files = worker.call(
                "predict",
                time_s=time_s,
                inputs=_names(self.folder.stored(part, "input")),
                outputs=str(place / "predicted"),
                # As many as are timed: a runtime may take other kernels for another batch.
                batch=self.goal.conditions.batch,
                start=start,
                stop=stop,
            )
        outputs = [np.load(file, allow_pickle=False) for file in files]
        for file in files:
            Path(file).unlink()
        return outputs

    def time(
        self, artifacts: Sequence[Path], part: str, *, rounds: int, block_s: float, time_s: float | None = None
    ) -> list[Timing]:
        """The artifacts' latencies on a stored part's examples, in interleaved blocks."""
        return interleaved(
            artifacts,
            self.folder.stored(part, "input"),
            self.goal.conditions,
            rounds=rounds,
            block_s=block_s,
            log=self.folder.log,
            memory_bytes=self.memory_bytes,
            time_s=time_s,
        )

    def memory(self, artifact: Path, part: str, *, time_s: float | None = None) -> Measurement:
        """Peak memory of fresh processes that run the artifact."""
        inputs, conditions, log = self.folder.stored(part, "input"), self.goal.conditions, self.folder.log
        return peak_memory(artifact, inputs, conditions, log=log, memory_bytes=self.memory_bytes, time_s=time_s)

    def energy(self, artifact: Path, part: str) -> Measurement:
        """Energy a call of the artifact, or `unavailable`."""
        inputs, conditions = self.folder.stored(part, "input"), self.goal.conditions
        return energy(artifact, inputs, conditions, log=self.folder.log, memory_bytes=self.memory_bytes)

    def close(self) -> None:
        self._close_builder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _building(self) -> Worker:
        """The building process, a new one if the last one died."""
        if self._builder is None or not self._builder.alive:
            self._close_builder()
            self._builder = Worker(
                "temper.pipeline.builder",
                log=self.folder.log,
                memory_bytes=self.memory_bytes,
                threads=working_threads(),
            )
        return self._builder

    def _runner(self) -> Worker:
        return Worker(
            "temper.measure.runner",
            log=self.folder.log,
            memory_bytes=self.memory_bytes,
            threads=self.goal.conditions.threads,
        )

    def _close_builder(self) -> None:
        if self._builder is not None:
            self._builder.close()
            self._builder = None


def _names(files: Sequence[Path]) -> list[str]:
    return [str(file) for file in files]
