from temper.core.frontier import MOST_TESTED, baseline, candidates, frontier, full_precision
from temper.core.goal import Goal
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.trial import Trial
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.runtimes.torch_eager import TorchEager
from temper.techniques.quantization.post_training import PostTrainingQuantization

GOAL = Goal(max_drop=0.01)
ORT, HALF, EAGER = Recipe(runtime=OnnxRuntime()), Recipe(runtime=OpenVino()), Recipe(runtime=TorchEager())


def tuned(layers: int, runtime: Runtime = OnnxRuntime()) -> Recipe:  # noqa: B008 (frozen)
    technique = PostTrainingQuantization(percentile=50.0 + layers)
    return Recipe(techniques=(technique,), runtime=runtime)


def trial(
    recipe: Recipe,
    ratio: float,
    drop: float = 0.0,
    upper: float | None = None,
    outcome: str = "measured",
    spread: float = 0.0,
) -> Trial:
    def one(value: float, low: float, high: float) -> Measurement:
        return Measurement(value=value, lower=low, upper=high, unit="1", samples=9)

    drops = one(drop, drop, drop if upper is None else upper)
    measurements = {"latency_ratio": one(ratio, ratio - spread, ratio + spread), "drop": drops}
    return Trial(number=1, recipe=recipe, outcome=outcome, measurements=measurements)


def test_the_baseline_is_the_fastest_float_that_keeps_the_quality() -> None:
    trials = [trial(EAGER, 3.0), trial(ORT, 1.0), trial(HALF, 0.5, drop=0.02), trial(tuned(0), 0.1)]
    assert baseline(trials, GOAL) is trials[1]
    assert full_precision(trials, GOAL) is trials[1]
    assert baseline([*trials, trial(HALF, 0.5)], GOAL).recipe == HALF
    assert baseline([trials[2]], GOAL) is trials[2]
    assert baseline([trials[3]], GOAL) is None
    assert baseline([trial(ORT, 1.0, outcome="failed")], GOAL) is None


def test_from_safest_to_boldest_without_those_that_others_beat() -> None:
    start = trial(ORT, 1.0, upper=0.002)
    safe, bold = trial(tuned(1), 0.8, upper=0.003), trial(tuned(2), 0.5, 0.005, upper=0.009)
    beaten = trial(tuned(3), 0.9, upper=0.005)
    hardly = trial(tuned(4), 0.798, upper=0.004)
    outside = trial(tuned(5), 0.1, drop=0.02)
    failed = trial(tuned(6), 0.1, outcome="failed")
    trials = [bold, beaten, outside, failed, start, hardly, safe]
    assert frontier(trials, GOAL) == [start, safe, bold]
    assert frontier([], GOAL) == []


def test_the_boldest_are_tested_when_there_are_many() -> None:
    start = trial(ORT, 1.0)
    rest = [trial(tuned(index), 0.9 - 0.1 * index, upper=0.001 * index) for index in range(8)]
    assert candidates([start, *rest], GOAL) == [start, *rest[-(MOST_TESTED - 1) :]]
    assert frontier([start, *rest], GOAL) == [start, *rest]
    assert candidates([], GOAL) == []


def test_what_overlaps_is_left_to_the_proof() -> None:
    """A safer trial rules out a bolder one only if the bolder one is surely not better."""
    start = trial(ORT, 1.0, upper=0.001)
    safe = trial(tuned(1), 0.60, upper=0.002, spread=0.03)
    close = trial(tuned(2), 0.64, upper=0.003, spread=0.05)
    beaten = trial(tuned(3), 0.80, upper=0.004, spread=0.05)
    assert candidates([start, beaten, close, safe], GOAL) == [start, safe, close]
    assert frontier([start, beaten, close, safe], GOAL) == [start, safe]


def test_the_best_of_each_runtime_is_tested() -> None:
    """Two runtimes measured at different moments: the proof decides between them, unless the baseline surely wins."""
    start, safe = trial(HALF, 1.0, upper=0.001), trial(tuned(1), 0.54, upper=0.002)
    second = trial(tuned(1, OpenVino()), 0.66, upper=0.003)
    assert candidates([start, safe, second], GOAL) == [start, safe, second]
    slower = trial(tuned(1, OpenVino()), 1.1, upper=0.003)
    assert candidates([start, safe, slower], GOAL) == [start, safe]
