"""What ships, with contestants whose predictions and measurements are made up."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from temper.core.errors import WorkerError
from temper.core.frontier import candidates
from temper.core.goal import Goal
from temper.core.measurement import Measurement
from temper.core.proof import Row, Verdict
from temper.core.recipe import Recipe
from temper.core.schema import Schema, TensorSpec
from temper.core.trial import Trial
from temper.measure.metrics import resolve
from temper.pipeline import choose as module
from temper.pipeline.choose import Choice, choose
from temper.pipeline.subject import Subject
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.techniques.quantization.post_training import PostTrainingQuantization

COUNT = 600
GOAL = Goal(max_drop=0.02)
LABELS = np.arange(COUNT) % 2
RIGHT = np.eye(2, dtype=np.float32)[LABELS]
FLOAT = Recipe(runtime=OnnxRuntime())
HALF = Recipe(runtime=OpenVino())
SAFE, MIDDLE, BOLD = (
    Recipe(techniques=(PostTrainingQuantization(ranges=ranges),), runtime=OnnxRuntime())
    for ranges in ("mse", "percentile", "minmax")
)


def one(value: float, spread: float = 0.0) -> Measurement:
    return Measurement(
        value=value,
        lower=value - spread,
        upper=value + spread,
        unit="1",
        samples=9,
        details={"noise_floor": 0.02},
    )


def wrong(count: int) -> np.ndarray:
    """Predictions that miss so many examples."""
    outputs = RIGHT.copy()
    outputs[:count] = outputs[:count, ::-1]
    return outputs


def chosen(
    monkeypatch: pytest.MonkeyPatch,
    contestants: Sequence[tuple[Recipe, float, np.ndarray | Exception]],
    *,
    goal: Goal = GOAL,
    allow_unproven: bool = False,
    limits: Mapping[str, Measurement] | None = None,
) -> Choice:
    """`contestants` are recipes from safe to bold with their latency ratio and what they predict."""
    trials, outputs, ratios = [], {}, {}
    for number, (recipe, ratio, predicted) in enumerate(contestants, start=1):
        upper = one(0.0).value + 0.001 * number
        drop = Measurement(value=0.0, lower=0.0, upper=upper, unit="accuracy", samples=9)
        measurements = {"latency_ratio": one(ratio), "drop": drop, **(limits or {})}
        trials.append(Trial(number=number, recipe=recipe, outcome="measured", measurements=measurements))
        outputs[str(number)] = predicted
        ratios[str(recipe)] = ratio

    def predict(artifact: Path, part: str, start: int, stop: int, *, time_s: float) -> list[np.ndarray]:
        predicted = outputs[artifact.name]
        if isinstance(predicted, Exception):
            raise predicted
        return [predicted[start:stop]]

    def measure_rows(workshop: object, subject: Subject, tested: Mapping) -> tuple[dict[str, Row], float]:
        base = ratios[str(tested["baseline"].recipe)]
        rows = {}
        for role, each in tested.items():
            measurements = {"latency_ratio": one(ratios[str(each.recipe)] / base, 0.01), **(limits or {})}
            rows[role] = Row(role=role, recipe=each.recipe.to_json(), title=str(each.recipe), measurements=measurements)
        return rows, 0.02

    monkeypatch.setattr(module, "measure_rows", measure_rows)
    spec = TensorSpec(name="y", shape=(None, 2), dtype="float32")
    schema = Schema(inputs=(spec,), outputs=(spec,), nesting="tensor")
    subject = Subject(
        part="proof", examples=_Sized(LABELS), original=(RIGHT,), metric=resolve("accuracy"), schema=schema, seed=0
    )

    def time(folders: Sequence[Path], part: str, *, rounds: int, block_s: float) -> list[SimpleNamespace]:
        values = [contestants[int(folder.name) - 1][1] for folder in folders]
        return [SimpleNamespace(ratio_to=lambda other, value=value: one(value)) for value in values]

    workshop = SimpleNamespace(goal=goal, predict=predict, time=time, artifact_of=lambda trial: Path(str(trial.number)))
    frozen = candidates(trials, goal)
    return choose(workshop, subject, frozen, trials, allow_unproven=allow_unproven, tell=lambda line: None)


class _Sized:
    def __init__(self, targets: np.ndarray) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)


def test_the_boldest_that_is_proven_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = chosen(monkeypatch, [(FLOAT, 1.0, RIGHT), (SAFE, 0.8, wrong(1)), (BOLD, 0.5, wrong(2))])
    assert choice.tested.recipe == BOLD
    assert choice.baseline.recipe == FLOAT
    assert [each.verdict for each in choice.judgements] == [Verdict.ACCEPT, Verdict.ACCEPT]
    assert [row.role for row in choice.rows] == ["baseline", "chosen"]


def test_the_sequence_stops_at_the_first_that_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bolder one is never tested behind it, however good it is: else the 5 % would not hold."""
    choice = chosen(monkeypatch, [(FLOAT, 1.0, RIGHT), (SAFE, 0.8, wrong(60)), (BOLD, 0.5, RIGHT)])
    assert choice.tested.recipe == FLOAT
    assert [step["verdict"] for step in choice.steps] == ["ACCEPT", "REJECT"]
    assert "REJECT" in choice.reason


def test_a_candidate_that_fails_on_the_proof_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = WorkerError("the process was killed by signal 11")
    choice = chosen(monkeypatch, [(FLOAT, 1.0, RIGHT), (SAFE, 0.8, wrong(1)), (BOLD, 0.5, crash)])
    assert choice.tested.recipe == SAFE
    assert "signal 11" in choice.steps[-1]["reason"]
    broken = RIGHT.copy()
    broken[3, 0] = np.nan
    choice = chosen(monkeypatch, [(FLOAT, 1.0, RIGHT), (SAFE, 0.8, broken)])
    assert choice.tested.recipe == FLOAT
    assert "NaN" in choice.reason


def test_nothing_faster_by_more_than_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = chosen(monkeypatch, [(FLOAT, 1.0, RIGHT), (SAFE, 0.98, RIGHT)])
    assert choice.tested.recipe == FLOAT
    assert "no proven candidate is better" in choice.reason


def test_what_is_not_proven_ships_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    contestants = [(FLOAT, 1.0, RIGHT), (SAFE, 0.5, wrong(10))]
    choice = chosen(monkeypatch, contestants)
    assert choice.steps[-1]["verdict"] == "INCONCLUSIVE"
    assert choice.tested.recipe == FLOAT
    choice = chosen(monkeypatch, contestants, allow_unproven=True)
    assert choice.tested.recipe == SAFE
    assert choice.judgements[0].verdict is Verdict.INCONCLUSIVE
    assert "NOT proven" in choice.reason
    refuted = [(FLOAT, 1.0, RIGHT), (SAFE, 0.5, wrong(60))]
    assert chosen(monkeypatch, refuted, allow_unproven=True).tested.recipe == FLOAT


def test_behind_what_is_not_proven_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On request the sequence goes on, but one that alone would be accepted no longer is."""
    contestants = [(FLOAT, 1.0, RIGHT), (SAFE, 0.8, wrong(10)), (MIDDLE, 0.6, RIGHT), (BOLD, 0.5, wrong(9))]
    assert chosen(monkeypatch, contestants).tested.recipe == FLOAT
    choice = chosen(monkeypatch, contestants, allow_unproven=True)
    assert choice.tested.recipe == BOLD
    assert [step["verdict"] for step in choice.steps] == ["ACCEPT", *["INCONCLUSIVE"] * 3]
    assert "behind one that is not proven" in choice.steps[2]["reason"]


def test_what_misses_the_limit_on_the_proof_itself_never_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = chosen(monkeypatch, [(FLOAT, 1.0, RIGHT), (SAFE, 0.5, wrong(13))], allow_unproven=True)
    assert choice.steps[-1]["verdict"] == "INCONCLUSIVE"
    assert choice.tested.recipe == FLOAT
    refuted = [(FLOAT, 1.0, RIGHT), (SAFE, 0.5, wrong(13)), (BOLD, 0.4, wrong(60))]
    assert "the first candidate is INCONCLUSIVE" in chosen(monkeypatch, refuted, allow_unproven=True).reason


def test_a_plausible_baseline_of_lower_precision_stays_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    contestants = [(HALF, 0.5, wrong(10)), (SAFE, 0.3, RIGHT), (FLOAT, 1.0, RIGHT)]
    assert chosen(monkeypatch, contestants).baseline.recipe == FLOAT
    choice = chosen(monkeypatch, contestants, allow_unproven=True)
    assert (choice.baseline.recipe, choice.tested.recipe) == (HALF, SAFE)


def test_a_baseline_that_the_proof_refutes_gives_way_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = chosen(monkeypatch, [(HALF, 0.5, wrong(60)), (FLOAT, 1.0, RIGHT)])
    assert choice.tested.recipe == FLOAT
    assert choice.baseline.recipe == FLOAT
    assert [step["verdict"] for step in choice.steps] == ["REJECT", "ACCEPT"]


def test_a_lower_precision_that_is_not_proven_gives_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = chosen(monkeypatch, [(HALF, 0.5, wrong(10)), (FLOAT, 1.0, RIGHT)])
    assert choice.steps[0]["verdict"] == "INCONCLUSIVE"
    assert choice.tested.recipe == FLOAT


def test_a_limit_that_is_not_proven_keeps_a_candidate_back(monkeypatch: pytest.MonkeyPatch) -> None:
    goal = Goal(max_drop=0.02, limits={"latency_s": 0.1})
    contestants = [(FLOAT, 1.0, RIGHT), (SAFE, 0.5, RIGHT)]
    wide = chosen(monkeypatch, contestants, goal=goal, limits={"latency_s": one(0.09, 0.05)})
    assert wide.tested.recipe == FLOAT
    assert [each.verdict for each in wide.judgements] == [Verdict.ACCEPT, Verdict.INCONCLUSIVE]
    narrow = chosen(monkeypatch, contestants, goal=goal, limits={"latency_s": one(0.09, 0.001)})
    assert narrow.tested.recipe == SAFE
