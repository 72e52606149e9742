"""Quality of a candidate against the original model, on the same examples."""

from dataclasses import dataclass

import numpy as np

from temper.core.errors import MetricError
from temper.core.measurement import Measurement
from temper.core.metric import Metric
from temper.core.schema import Array, Outputs
from temper.measure.metrics import examples_in, pooled, scores, value
from temper.measure.paired_pooled import paired_perplexity, perplexity, perplexity_interval
from temper.measure.statistics import DropTest, mean_interval, paired_drop, set_metric_drop

RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A candidate's own score, and the test of its drop against the original."""

    score: Measurement
    drop: Measurement
    test: DropTest


def compare(
    metric: Metric, original: Outputs, candidate: Outputs, targets: Array | None, *, max_drop: float, seed: int
) -> Quality:
    """Score the candidate's outputs and test whether it lost `max_drop` or more (in units of the metric).

    Raises: MetricError if the metric fails or gives no numbers, or if its drop cannot be tested on these examples.
    """
    try:
        return _compared(metric, original, candidate, targets, max_drop, seed)
    except ValueError as error:
        raise MetricError(f"the drop of metric {metric.name!r} cannot be tested: {error}") from error


def _compared(
    metric: Metric, original: Outputs, candidate: Outputs, targets: Array | None, max_drop: float, seed: int
) -> Quality:
    if metric.pooled:
        before, after = (pooled(metric, each, targets, original) for each in (original, candidate))
        test = paired_perplexity(before, after, max_drop=max_drop, seed=seed)
        score, (lower, upper) = metric.orient(perplexity(after)), perplexity_interval(after)
        lower, upper = metric.orient(upper), metric.orient(lower)
        count = len(after)
    elif metric.per_example:
        before = scores(metric, original, targets, original)
        after = scores(metric, candidate, targets, original)
        test = paired_drop(before, after, max_drop=max_drop, seed=seed)
        score = float(after.mean())
        lower, upper = mean_interval(after)
        count = len(after)
    else:
        count = examples_in(original)

        def both(indices: Array) -> tuple[float, float]:
            return (
                value(metric, original, targets, original, indices),
                value(metric, candidate, targets, original, indices),
            )

        test = set_metric_drop(both, count, max_drop=max_drop, seed=seed)
        everyone = np.arange(count)
        score = value(metric, candidate, targets, original, everyone)
        generator = np.random.default_rng(seed)
        resampled = [
            value(metric, candidate, targets, original, generator.integers(0, count, count)) for _ in range(RESAMPLES)
        ]
        lower, upper = map(float, np.percentile(resampled, [2.5, 97.5]))
    return Quality(score=_score(metric, score, lower, upper, count), drop=_drop(metric, test), test=test)


def _score(metric: Metric, oriented: float, lower: float, upper: float, count: int) -> Measurement:
    """Scores are oriented so that higher is better; a person reads them in the metric's own direction."""
    if not metric.higher_is_better:
        oriented, lower, upper = -oriented, -upper, -lower
    return Measurement(value=oriented, lower=lower, upper=upper, unit=metric.name, samples=count)


def _drop(metric: Metric, test: DropTest) -> Measurement:
    details = {
        "method": test.method,
        "p_value": test.p_value,
        "disagreements": test.disagreements,
        "n_needed": test.n_needed,
        "verdict": test.verdict,
    }
    unit = "1" if metric.pooled else metric.name
    return Measurement(value=test.drop, lower=test.lower, upper=test.upper, unit=unit, samples=test.n, details=details)
