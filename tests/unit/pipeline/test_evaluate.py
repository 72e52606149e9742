"""A trial is timed beside the best float runtime so far, and told as a multiple of the first trial."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from temper.core.goal import Goal
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.trial import Trial
from temper.measure.latency import Timing
from temper.pipeline.evaluate import _latency
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino


def float_trial(number: int, recipe: Recipe, ratio: float) -> Trial:
    drop = Measurement(value=0.0, lower=0.0, upper=0.0, unit="1", samples=9)
    latency = Measurement(value=ratio, lower=ratio, upper=ratio, unit="1", samples=9)
    measurements = {"drop": drop, "latency_ratio": latency}
    return Trial(number=number, recipe=recipe, outcome="measured", measurements=measurements)


FIRST, BEST = float_trial(1, Recipe(runtime=OnnxRuntime()), 1.0), float_trial(2, Recipe(runtime=OpenVino()), 0.5)


@pytest.mark.parametrize(
    ("history", "beside", "expected"), [((), None, 1.0), ((FIRST,), "1", 0.8), ((FIRST, BEST), "2", 0.4)]
)
def test_the_best_float_runtime_is_timed_beside(history: Sequence[Trial], beside: str | None, expected: float) -> None:
    seconds = {"1": 1.0, "2": 1.0, "new": 0.8}
    asked: list[list[str]] = []

    def time(folders: Sequence[Path], part: str, **settings: float) -> list[Timing]:
        asked.append([folder.name for folder in folders])
        arrays = (np.full(15, seconds[folder.name]) for folder in folders)
        return [Timing(blocks=each, calls=each, disturbed=0) for each in arrays]

    workshop = SimpleNamespace(goal=Goal(), time=time, artifact_of=lambda trial: Path(str(trial.number)))
    found = _latency(workshop, Path("new"), "selection", history, 9.0)  # type: ignore[arg-type]
    assert asked == [[*([] if beside is None else [beside]), "new"]]
    ratio = found["latency_ratio"]
    assert ratio.value == pytest.approx(expected)
    assert ratio.lower == pytest.approx(expected)
    assert found["latency_s"].value == pytest.approx(0.8)
