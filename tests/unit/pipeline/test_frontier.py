from temper.core.frontier import MOST_TESTED, baseline, frontier, full_precision
from temper.core.goal import Goal
from temper.core.measurement import Measurement
from temper.core.recipe import Recipe
from temper.core.trial import Trial
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.runtimes.torch_eager import TorchEager
from temper.techniques.quantization.post_training import PostTrainingQuantization

GOAL = Goal(max_drop=0.01)
ORT, HALF, EAGER = Recipe(runtime=OnnxRuntime()), Recipe(runtime=OpenVino()), Recipe(runtime=TorchEager())


def tuned(layers: int) -> Recipe:
    technique = PostTrainingQuantization(percentile=50.0 + layers)
    return Recipe(techniques=(technique,), runtime=OnnxRuntime())


def trial(
    recipe: Recipe, ratio: float, drop: float = 0.0, upper: float | None = None, outcome: str = "measured"
) -> Trial:
    def one(value: float, high: float | None = None) -> Measurement:
        return Measurement(value=value, lower=value, upper=value if high is None else high, unit="1", samples=9)

    return Trial(
        number=1, recipe=recipe, outcome=outcome, measurements={"latency_ratio": one(ratio), "drop": one(drop, upper)}
    )


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


def test_the_boldest_stay_when_there_are_many() -> None:
    start = trial(ORT, 1.0)
    rest = [trial(tuned(index), 0.9 - 0.1 * index, upper=0.001 * index) for index in range(8)]
    chosen = frontier([start, *rest], GOAL)
    assert chosen == [start, *rest[-(MOST_TESTED - 1) :]]
