"""One trial: a recipe applied, exported, reloaded and measured on the selection part, cheap checks first."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from temper.core.artifact import Artifact
from temper.core.errors import HostError, MissingExtra, TemperError
from temper.core.frontier import baseline
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.trial import Outcome, Trial
from temper.pipeline.subject import Subject
from temper.pipeline.workshop import Workshop

FIRST_EXAMPLES = 32
ROUNDS, BLOCK_S = 15, 0.01
HOPELESS = 1.25
"""A tuned trial this many times slower than the baseline is dropped before its quality is measured."""


def evaluate(
    workshop: Workshop,
    subject: Subject,
    number: int,
    recipe: Recipe,
    history: Sequence[Trial],
    *,
    time_s: float,
) -> Trial:
    """Make and measure one trial; whatever goes wrong with it is its outcome, not an error.

    The metric has scored the original by now, so where it fails on the candidate's outputs, that is the trial's fault.
    Raises: HostError if the machine cannot go on, such as with a full disk.
    """
    began = time.monotonic()
    measurements: dict[str, Measurement] = {}
    executed: dict[str, int] = {}

    def ended(outcome: Outcome, reason: str = "") -> Trial:
        return Trial(
            number=number,
            recipe=recipe,
            outcome=outcome,
            reason=reason,
            cost_s=time.monotonic() - began,
            measurements=measurements,
            executed=executed,
        )

    def left() -> float:
        return max(1.0, time_s - (time.monotonic() - began))

    folder = workshop.folder.trial(number)
    try:
        executed |= workshop.build(recipe, folder, time_s=left())
        measurements["size_bytes"] = counted_bytes(folder)
        # A model that cannot even run its first examples is not worth timing.
        workshop.predict(folder, subject.part, 0, min(FIRST_EXAMPLES, len(subject.examples)), time_s=left())
        measurements |= _latency(workshop, folder, subject.part, history, left())
        if _is_hopeless(measurements, recipe, history, workshop):
            return ended("dropped", "slower than the baseline by so much that its quality was not measured")
        if "memory_bytes" in workshop.goal.limits or workshop.goal.minimize == "memory":
            measurements["memory_bytes"] = workshop.memory(folder, subject.part, time_s=left())
        outputs = workshop.predict(folder, subject.part, 0, len(subject.examples), time_s=left())
        quality = subject.compare(outputs, workshop.goal.max_drop)
        measurements |= {"score": quality.score, "drop": quality.drop}
    except HostError as error:
        if not isinstance(error, MissingExtra):
            raise
        return ended("failed", str(error))
    except TemperError as error:
        return ended("failed", str(error))
    return ended("measured")


def counted_bytes(artifact: Path) -> Measurement:
    """The bytes of an artifact's model files, which are counted and not sampled."""
    count = Artifact.open(artifact).size_bytes
    return Measurement(value=count, lower=count, upper=count, unit="B", samples=1)


def _latency(
    workshop: Workshop, folder: Path, part: str, history: Sequence[Trial], time_s: float
) -> dict[str, Measurement]:
    """Latency, and its ratio to the first trial of the run, by way of the best float runtime so far.

    Both are timed together, so that they are ordered rightly even if the one before was measured in a bad moment.
    """
    best = baseline(history, workshop.goal) or next((trial for trial in history if trial.measured), None)
    contestants = [folder] if best is None else [workshop.artifact_of(best), folder]
    timings = workshop.time(contestants, part, rounds=ROUNDS, block_s=BLOCK_S, time_s=time_s)
    ratio = timings[-1].ratio_to(timings[0])
    unit = 1.0 if best is None else best.measurements["latency_ratio"].value
    scaled = replace(ratio, value=unit * ratio.value, lower=unit * ratio.lower, upper=unit * ratio.upper)
    return {"latency_s": timings[-1].latency(), "latency_ratio": scaled}


def _is_hopeless(
    measurements: dict[str, Measurement], recipe: Recipe, history: Sequence[Trial], workshop: Workshop
) -> bool:
    best = baseline(history, workshop.goal)
    if workshop.goal.minimize != "latency" or best is None or not recipe.techniques:
        return False
    return measurements["latency_ratio"].lower > HOPELESS * best.objective(workshop.goal)
