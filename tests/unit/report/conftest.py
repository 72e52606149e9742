"""Journals of made-up runs: finished, stopped early, without gain, with failures."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from temper.core.goal import Goal
from temper.core.journal import Journal
from temper.core.measurement import Measurement
from temper.core.proof import Judgement, Proof, Row, Verdict
from temper.core.recipe import Recipe
from temper.core.trial import Trial

EAGER = {"techniques": [], "runtime": {"name": "torch_eager"}}
FLOAT = {"techniques": [], "runtime": {"name": "onnxruntime"}}
FUSED = {"techniques": [{"name": "fusion.batch_norm"}], "runtime": {"name": "onnxruntime"}}
TUNED = {
    "techniques": [{"name": "fusion.batch_norm"}, {"name": "quantization.post_training", "ranges": "mse"}],
    "runtime": {"name": "onnxruntime"},
}
NOTE = "3 examples stood in two parts and were dropped from selection"
TASK = {
    "name": "Digits",
    "source": "digits.py:task",
    "model": "Classifier",
    "metric": "accuracy",
    "examples": {"calibration": 256, "selection": 500, "proof": 1200},
    "notes": [NOTE],
    "schema": {
        "inputs": [{"name": "x", "shape": [None, 1, 8, 8], "dtype": "float32"}],
        "outputs": [{"name": "output", "shape": [None, 10], "dtype": "float32"}],
        "nesting": "tensor",
    },
    "parameters": 12345,
    "operators": 20,
    "flops": 1_500_000,
    "weight_bytes": 49_380,
}
TARGET = {
    "processor": "A processor",
    "cores": 4,
    "memory_bytes": 16_000_000_000,
    "features": ["avx2"],
    "system": "Linux",
    "versions": {"python": "3.12.1", "torch": "2.13.0"},
    "runtimes": ["onnxruntime", "torch_eager"],
}


def measured(value: float, spread: float = 0.0, unit: str = "1", **details: Any) -> Measurement:
    lower, upper = value - spread, value + spread
    return Measurement(value=value, lower=lower, upper=upper, unit=unit, samples=40, details=details)


def measurements(ratio: float, drop: float, size: float, *, floor: float = 0.02) -> dict[str, Measurement]:
    seconds = 0.001 * ratio
    return {
        "score": measured(0.95 - drop, 0.01, "accuracy"),
        "drop": measured(drop, 0.004, "accuracy"),
        "latency_s": measured(seconds, seconds / 9, "s", p50=seconds, p90=seconds * 1.2, p99=seconds * 2),
        "latency_ratio": measured(ratio, 0.03 * ratio, noise_floor=floor),
        "size_bytes": measured(size, 0, "B"),
        "memory_bytes": measured(60e6 + 10 * size, 1e5, "B"),
    }


def trial(number: int, recipe: Mapping[str, Any], ratio: float, drop: float, size: float) -> Trial:
    return Trial(
        number=number,
        recipe=Recipe.from_json(recipe),
        outcome="measured",
        cost_s=12.5,
        measurements=measurements(ratio, drop, size),
        executed={"float32": 7, "int8": 13},
    )


TRIALS = (
    trial(1, FLOAT, 1.0, 0.0, 1e6),
    trial(2, EAGER, 5.0, 0.0, 1.1e6),
    trial(3, FUSED, 0.95, 0.0, 0.99e6),
    trial(4, TUNED, 0.6, 0.002, 0.3e6),
)


@dataclass(kw_only=True)
class Run:
    """What a made-up run notes in its journal."""

    trials: tuple[Trial, ...] = TRIALS
    goal: Goal = field(default_factory=Goal)
    task: Mapping[str, Any] = field(default_factory=lambda: TASK)
    missing: Mapping[str, str] = field(default_factory=dict)
    proof: Proof | None = None
    begun: Mapping[str, Any] | None = None

    def write(self, file: Path) -> Journal:
        journal = Journal(file)
        journal.note(fingerprint={"model": "0123"})
        journal.note(command="temper optimize digits.py:task --out run --trials 4 --seed 3")
        journal.note(goal=self.goal.to_json())
        journal.note(seed=3)
        journal.note(target=TARGET)
        journal.note(missing=dict(self.missing))
        journal.note(task=dict(self.task))
        for each in self.trials:
            journal.start(each.recipe)
            journal.end(each)
        if self.begun is not None:
            journal.start(Recipe.from_json(self.begun))
        if self.proof is not None:
            journal.note(proof=self.proof.to_json())
        return journal


def row(role: str, recipe: Mapping[str, Any], ratio: float, drop: float, size: float) -> Row:
    known = Recipe.from_json(recipe)
    return Row(role=role, recipe=known.to_json(), title=str(known), measurements=measurements(ratio, drop, size))


def judged(limit: str, bound: float, verdict: Verdict, reason: str) -> Judgement:
    return Judgement(limit=limit, bound=bound, measurement=measured(0.002, 0.004), verdict=verdict, reason=reason)


def proven(goal: Goal | None = None, *, verdict: Verdict = Verdict.ACCEPT, **changes: Any) -> Proof:
    gain = {"latency": "latency_ratio", "size": "size_bytes", "memory": "memory_bytes"}[(goal or Goal()).minimize]
    facts: dict[str, Any] = {
        "task": "Digits",
        "metric": "accuracy",
        "goal": goal or Goal(),
        "seed": 3,
        "fingerprint": {"model": "00"},
        "examples": 1200,
        "rows": (
            row("eager", EAGER, 5.0, 0.0, 1.1e6),
            row("baseline", FLOAT, 1.0, 0.0, 1e6),
            row("chosen", TUNED, 0.6, 0.002, 0.3e6),
        ),
        "judgements": (
            judged("drop", 0.01, verdict, "drop +0.0020, at most +0.0060 with 95 % confidence"),
            judged(gain, 1.0, Verdict.ACCEPT, "latency is 0.600 of the baseline's"),
        ),
        "steps": tuple(
            {"title": str(Recipe.from_json(each)), "verdict": step.value, "reason": "drop -0.0010, at most +0.0060"}
            for each, step in ((FLOAT, Verdict.ACCEPT), (FUSED, Verdict.ACCEPT), (TUNED, verdict))
        ),
        "predictions": "00",
        "environment": TARGET,
        "notes": ("In latency it is the best of those whose limits are all proven", NOTE),
    }
    return Proof(**{**facts, **changes})


def own_model() -> Proof:
    """The proof of a run in which only the baseline ships."""
    steps = (
        {"title": "onnxruntime", "verdict": "ACCEPT", "reason": "drop +0.0000, at most +0.0010"},
        {"title": str(Recipe.from_json(FUSED)), "verdict": "INCONCLUSIVE", "reason": "About 4,000 examples would do"},
    )
    return proven(
        rows=(
            row("eager", EAGER, 5.0, 0.0, 1.1e6),
            row("baseline", FLOAT, 1.0, 0.0, 1e6),
            row("chosen", FLOAT, 1.0, 0.0, 1e6),
        ),
        judgements=(judged("drop", 0.01, Verdict.ACCEPT, "drop +0.0000, at most +0.0010"),),
        steps=steps,
        notes=("The unchanged model on its best runtime ships, because the first candidate is INCONCLUSIVE",),
    )


def failing() -> tuple[Trial, ...]:
    """Trials that failed, were dropped, interrupted, or broke the limit, with reasons of any length."""
    recipe = Recipe.from_json(TUNED)
    long = "RuntimeError: " + "the kernel refused " * 60 + "x" * 400 + " <b>end</b>"
    unbounded = {**measurements(0.9, 0.001, 0.9e6), "drop": Measurement(
        value=0.001, lower=-math.inf, upper=math.inf, unit="accuracy", samples=20)}  # fmt: skip
    return (
        *TRIALS,
        Trial(number=5, recipe=recipe, outcome="failed", reason=long, cost_s=3.0),
        Trial(number=6, recipe=recipe, outcome="dropped", reason="slower than the baseline by so much", cost_s=700,
              measurements={"latency_ratio": measured(4.0, 0.1), "size_bytes": measured(3e5)}),
        Trial(number=7, recipe=recipe, outcome="interrupted", reason="the run was stopped during this trial"),
        trial(8, TUNED, 0.4, 0.2, 0.2e6),
        trial(9, TUNED, 0.7, 0.02, 0.25e6),
        Trial(number=10, recipe=recipe, outcome="measured", measurements=unbounded),
    )  # fmt: skip


RUNS: Mapping[str, Callable[[], Run]] = {
    "proven": lambda: Run(proof=proven(), missing={"openvino": "Add it with: pip install 'temper-ml[openvino]'"}),
    "stopped": lambda: Run(begun=TUNED),
    "nothing measured": lambda: Run(trials=()),
    "only failures": lambda: Run(trials=tuple(each for each in failing() if not each.measured)),
    "own model": lambda: Run(proof=own_model()),
    "failures": lambda: Run(trials=failing(), proof=proven()),
    "size": lambda: Run(goal=Goal(minimize="size"), proof=proven(Goal(minimize="size"))),
    "memory": lambda: Run(goal=Goal(minimize="memory"), proof=proven(Goal(minimize="memory"))),
    "unproven": lambda: Run(proof=proven(verdict=Verdict.INCONCLUSIVE)),
    "rejected": lambda: Run(proof=proven(verdict=Verdict.REJECT)),
    "hostile": lambda: Run(
        task={**TASK, "name": "<script>alert('1')</script>", "notes": ["</main><img src=http://x.test/y.png>"],
              "metric": "<i>score</i>"},
        trials=failing(),
    ),
}  # fmt: skip


@pytest.fixture
def journal_of(tmp_path: Path) -> Callable[[str], Journal]:
    """The journal of one of the made-up runs, by name."""

    def made(name: str) -> Journal:
        return RUNS[name]().write(tmp_path / "journal.sqlite")

    return made
