"""Is it worse, is it faster, and how sure are we: the tests and intervals behind every number that temper reports.

Scores are oriented so that higher is better; a drop is reference minus candidate, so that positive is worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from temper.measure import paired_binary, paired_continuous

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Verdict = Literal["ACCEPT", "REJECT", "INCONCLUSIVE"]
Kind = Literal["binary", "continuous"]

_GROUPS = 100  # examples are left out in at most so many groups to see what a set metric hangs on
_FEWEST_GROUPS = 8  # BCa needs the drop to rest on at least so many of them (benchmarks/trust.md)
_POWER = 0.8  # n_needed proves the limit with this probability
_MEDIANS = 4_000


@dataclass(frozen=True, kw_only=True)
class DropTest:
    """A paired non-inferiority test: can the true drop still be as large as `max_drop`?

    `lower` and `upper` are one-sided bounds at `confidence` each, infinite where the examples allow no statement.
    `p_value` belongs to H0: true drop >= max_drop; it is under 1 - confidence exactly when `upper` is under `max_drop`.
    `disagreements` counts the examples whose two scores differ (None for a set metric: it scores no single example).
    `n_needed` examples would prove the limit with 80 % probability if true drop and disagreement are those observed;
    None where more examples are not expected to help, or where the sample gives no hint how many would.
    """

    drop: float
    lower: float
    upper: float
    max_drop: float
    confidence: float
    p_value: float
    n: int
    n_needed: int | None
    disagreements: int | None
    method: str
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class RatioEstimate:
    """Candidate time over baseline time (below 1 is faster) with a two-sided interval, from `pairs` of blocks."""

    ratio: float
    lower: float
    upper: float
    pairs: int


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """A one-sided upper bound of a mean and the p-value of H0: mean >= limit."""

    upper: float
    p_value: float
    method: str


def paired_drop(
    reference: npt.ArrayLike,
    candidate: npt.ArrayLike,
    *,
    max_drop: float,
    kind: Kind | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> DropTest:
    """Test whether the mean score of `candidate` lies less than `max_drop` under that of `reference`, in pairs.

    `reference` and `candidate` are float scores of shape (n,), higher is better, example i of both being the same
    example. `kind` is "binary" when all scores are 0 or 1 (detected when not given), else "continuous".

    Binary scores get an exact unconditional test, valid for every n (see `paired_binary`). Continuous scores get the
    most cautious of three bounds of the mean difference: paired t, studentized bootstrap, and Gaffke's bound with the
    worst difference seen as worst case; each alone is too liberal for some skewed differences. Together they keep to
    about 5 % from 100 examples on, with the exception below (benchmarks/trust.md). What a sample cannot show:

    - Under 30 continuous scores, or when all scores are one and the same number, the bounds are infinite, and the
      verdict INCONCLUSIVE.
    - When most differences are negligible (under 1 % of the limit) and fewer than 10 losses are not, the sample does
      not show how bad losses get. Then the worst case is the range of all scores seen: with no loss among n examples
      the bound is range * (1 - 0.05 ** (1 / n)), about 3 * range / n. It is right if no unseen loss exceeds that range.
    - Great losses rarer than about 3 in n, hidden among differences that are noisy everywhere, go unseen by any such
      test (measured: 10 % false ACCEPT with 3 % losses among 100 examples, 2 % among 300); nor does it hold 5 % below a
      few hundred examples when tails are heavier than lognormal (sigma 1).

    Raises:
        ValueError: arrays that are not one-dimensional, of one length, finite and non-empty; scores other than 0 and 1
            for "binary"; a binary max_drop outside (-1, 1); a confidence outside (0.5, 1).

    Reference: see `paired_binary` and `paired_continuous`.
    """
    before, after = _paired(reference, candidate)
    _check_level(max_drop, confidence)
    zero_one = bool(np.all((before == 0) | (before == 1)) and np.all((after == 0) | (after == 1)))
    if kind == "binary" and not zero_one:
        raise ValueError("kind='binary' needs scores that are all 0 or 1; leave kind out, or pass 'continuous'")
    if kind == "binary" or (kind is None and zero_one):
        return _binary(before, after, max_drop, confidence)
    return _continuous(before, after, max_drop, confidence, seed)


def _paired(reference: npt.ArrayLike, candidate: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    before, after = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if before.ndim != 1 or before.shape != after.shape or before.size == 0:
        raise ValueError(f"scores must be two arrays of one shape (n,), n >= 1, not {before.shape} and {after.shape}")
    broken = int(np.sum(~np.isfinite(before)) + np.sum(~np.isfinite(after)))
    if broken:
        raise ValueError(f"{broken} of {2 * before.size} scores are NaN or infinite; every example needs a number")
    return before, after


def _check_level(max_drop: float, confidence: float) -> None:
    if not math.isfinite(max_drop):
        raise ValueError(f"max_drop must be a finite number in the units of the metric, not {max_drop}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must lie between 0.5 and 1, not {confidence}")


def _error_rate(confidence: float) -> float:
    return round(1.0 - confidence, 12)  # so that 0.95 leaves 0.05, and not a little more


def _decide(
    drop: float,
    up: _Bound,
    down: _Bound,
    *,
    max_drop: float,
    confidence: float,
    n: int,
    n_needed: int | None,
    disagreements: int | None,
) -> DropTest:
    """Turn the bound of the drop and the bound of the mirrored drop into a verdict."""
    alpha = _error_rate(confidence)
    lower, upper, p = -down.upper, up.upper, up.p_value
    verdict: Verdict = "ACCEPT" if upper < max_drop else "REJECT" if lower > max_drop else "INCONCLUSIVE"
    # Bound and p-value come from one distribution, but resampling rounds them apart in the last place.
    p = min(p, math.nextafter(alpha, 0.0)) if verdict == "ACCEPT" else max(p, alpha)
    if verdict == "INCONCLUSIVE" and n_needed is not None:
        n_needed = max(n_needed, n + 1)
    return DropTest(
        drop=drop,
        lower=lower,
        upper=upper,
        max_drop=max_drop,
        confidence=confidence,
        p_value=p,
        n=n,
        n_needed=n_needed,
        disagreements=disagreements,
        method=up.method,
        verdict=verdict,
    )


def _binary(before: FloatArray, after: FloatArray, max_drop: float, confidence: float) -> DropTest:
    if not -1 < max_drop < 1:
        raise ValueError(f"max_drop of 0/1 scores must lie in (-1, 1) (one point of accuracy is 0.01), not {max_drop}")
    n, alpha = before.size, _error_rate(confidence)
    losses, gains = int(np.sum(before > after)), int(np.sum(after > before))
    exact = losses + gains <= paired_binary.EXACT_DISAGREEMENTS
    method = "exact unconditional (Tango score, Berger-Boos)" if exact else "score test (Tango, continuity correction)"

    def bound(worse: int, better: int, limit: float) -> _Bound:
        p = paired_binary.p_value(worse, better, n, limit, alpha=alpha)
        upper = paired_binary.upper_bound(worse, better, n, alpha=alpha, limit=limit, p_at_limit=p)
        return _Bound(upper=upper, p_value=p, method=method)

    return _decide(
        (losses - gains) / n,
        bound(losses, gains, max_drop),
        bound(gains, losses, -max_drop),
        max_drop=max_drop,
        confidence=confidence,
        n=n,
        n_needed=paired_binary.examples_needed(losses, gains, n, max_drop, alpha=alpha, power=_POWER),
        disagreements=losses + gains,
    )


def _continuous(before: FloatArray, after: FloatArray, max_drop: float, confidence: float, seed: int) -> DropTest:
    differences = before - after
    n, alpha = differences.size, _error_rate(confidence)
    span = float(max(before.max(), after.max()) - min(before.min(), after.min()))
    if n < paired_continuous.FEWEST_EXAMPLES or span == 0:
        why = (
            f"under {paired_continuous.FEWEST_EXAMPLES} examples"
            if n < paired_continuous.FEWEST_EXAMPLES
            else "all scores are the same number"
        )
        up = down = _Bound(upper=math.inf, p_value=1.0, method=f"none: {why}")
    else:
        upper, p, method = paired_continuous.mean_bound(differences, max_drop, span, alpha, seed)
        up = _Bound(upper=upper, p_value=p, method=method)
        upper, p, method = paired_continuous.mean_bound(-differences, -max_drop, span, alpha, seed)
        down = _Bound(upper=upper, p_value=p, method=method)
    return _decide(
        float(differences.mean()),
        up,
        down,
        max_drop=max_drop,
        confidence=confidence,
        n=n,
        n_needed=paired_continuous.examples_needed(differences, max_drop, span, alpha=alpha, power=_POWER),
        disagreements=int(np.sum(differences != 0)),
    )


def set_metric_drop(
    metric: Callable[[IntArray], tuple[float, float]],
    n: int,
    *,
    max_drop: float,
    confidence: float = 0.95,
    resamples: int = 1_000,
    seed: int = 0,
) -> DropTest:
    """Test the drop of a metric that exists only for a set of examples (F1, mAP, Spearman), by paired bootstrap.

    `metric(indices)` gets int64 indices of shape (n,), with repetitions (or up to 100 shorter subsets), and returns
    (reference value, candidate value) on those examples, higher is better; it is called resamples + 101 times. Each
    bound is the more cautious of percentile and BCa; either alone is too liberal at a few hundred examples. When the
    drop hangs on fewer than about 8 of 100 groups of examples (models that hardly ever disagree, or never), no
    resampling shows what is not in the sample: the bounds are infinite and the verdict INCONCLUSIVE.
    The size is about 5 % in the cells of benchmarks/trust.md; in a simulation it reached 6 % for F1 at 300 examples.

    Raises:
        ValueError: n < 30, too few resamples, a confidence outside (0.5, 1), or resamples on which the metric is NaN or
            infinite, with their number.

    Reference: B. Efron (1987), JASA 82:171-185 (BCa), acceleration from a grouped jackknife.
    """
    _check_level(max_drop, confidence)
    alpha = _error_rate(confidence)
    if n < paired_continuous.FEWEST_EXAMPLES or resamples < 10 / alpha:
        need = f"{paired_continuous.FEWEST_EXAMPLES} examples and {10 / alpha:.0f} resamples"
        raise ValueError(f"a set metric needs at least {need}, not {n} and {resamples}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    groups = min(n, _GROUPS)
    drop = _set_drops(metric, iter([np.arange(n)]), "the examples")[0]
    without = _set_drops(metric, (np.delete(order, np.s_[g::groups]) for g in range(groups)), "the subsets")
    drops = np.sort(_set_drops(metric, (rng.integers(0, n, size=n) for _ in range(resamples)), "the resamples"))
    influence = without.mean() - without
    power = float(np.sum(influence**2))
    influential = power * power / float(np.sum(influence**4)) if power > 0 else 0.0
    n_needed = None
    if influential < _FEWEST_GROUPS:
        up = down = _Bound(upper=math.inf, p_value=1.0, method="none: too few examples on which the models differ")
    else:
        up = _resampled_bound(drops, drop, influence, max_drop, alpha)
        down = _resampled_bound(-drops[::-1], -drop, -influence, -max_drop, alpha)
    if drop < max_drop and influential > 0:
        z = float(special.ndtri(confidence) + special.ndtri(_POWER))
        needed = (z * float(drops.std()) / (max_drop - drop)) ** 2
        n_needed = math.ceil(n * max(needed, _FEWEST_GROUPS / influential if influential < _FEWEST_GROUPS else 0.0))
    return _decide(
        float(drop), up, down, max_drop=max_drop, confidence=confidence, n=n, n_needed=n_needed, disagreements=None
    )


def _set_drops(
    metric: Callable[[IntArray], tuple[float, float]], selections: Iterator[IntArray], what: str
) -> FloatArray:
    values = np.array([metric(indices) for indices in selections], dtype=np.float64)
    broken = int(np.sum(~np.isfinite(values).all(axis=1)))
    if broken:
        raise ValueError(
            f"the metric is NaN or infinite on {broken} of {len(values)} of {what}; it needs more examples, "
            f"or a value for the degenerate case (such as no positive example)"
        )
    return np.asarray(values[:, 0] - values[:, 1])


def _resampled_bound(drops: FloatArray, drop: float, influence: FloatArray, limit: float, alpha: float) -> _Bound:
    """The larger of the percentile and the BCa upper bound, from sorted `drops` of shape (resamples,)."""
    count = drops.size
    below = float(np.mean(drops < drop) + np.mean(drops == drop) / 2)
    bias = float(special.ndtri(min(max(below, 1 / count), 1 - 1 / count)))
    acceleration = float(np.sum(influence**3)) / (6 * float(np.sum(influence**2)) ** 1.5)
    z = bias - float(special.ndtri(alpha))
    # Beyond the pole of the transformation no level is high enough.
    level = float(special.ndtr(bias + z / (1 - acceleration * z))) if acceleration * z < 1 else 1.0
    rank = min(math.ceil(max(level, 1 - alpha) * (count + 1) - 1e-9), count)
    # The p-value undoes the transformation at the share of resamples under the limit.
    share = min(max(float(np.searchsorted(drops, limit)) / (count + 1), 1 / (count + 1)), count / (count + 1))
    w = float(special.ndtri(share)) - bias
    corrected = w / (1 + acceleration * w) - bias if 1 + acceleration * w > 0 else -math.inf
    p = max(1 - share, float(special.ndtr(-corrected)))
    return _Bound(upper=float(drops[rank - 1]), p_value=p, method="paired bootstrap (larger of percentile and BCa)")


def latency_ratio(
    baseline_blocks: npt.ArrayLike, candidate_blocks: npt.ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> RatioEstimate:
    """Median of candidate / baseline over pairs of timed blocks, with a percentile bootstrap interval over the pairs.

    Both arrays have shape (blocks,): the median seconds per call of each block; block i of both ran next to each other,
    so that a drifting clock or a noisy neighbour cancels in the ratio. With p pairs the interval of a median cannot
    promise more than 1 - 2 ** (1 - p), which is 94 % for five pairs.

    Raises:
        ValueError: under five blocks, different numbers of blocks, or a time that is not positive and finite.

    Reference: B. Efron, R. Tibshirani (1993), An Introduction to the Bootstrap, sec. 13.3.
    """
    baseline = np.asarray(baseline_blocks, dtype=np.float64)
    candidate = np.asarray(candidate_blocks, dtype=np.float64)
    if baseline.ndim != 1 or baseline.shape != candidate.shape or baseline.size < 5:
        raise ValueError(f"need equally many blocks of both, at least 5, not {baseline.shape} and {candidate.shape}")
    if not (np.all(np.isfinite(baseline) & (baseline > 0)) and np.all(np.isfinite(candidate) & (candidate > 0))):
        raise ValueError("block times must be positive, finite seconds")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must lie between 0.5 and 1, not {confidence}")
    ratios = candidate / baseline
    lower, upper = median_interval(ratios, confidence=confidence, seed=seed)
    return RatioEstimate(ratio=float(np.median(ratios)), lower=lower, upper=upper, pairs=ratios.size)


def median_interval(samples: npt.ArrayLike, *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Two-sided percentile bootstrap interval of the median of samples of shape (n,), each drawn independently.

    It lies within the extremes, so it cannot promise more than 1 - 2 ** (1 - n), which is 94 % for five samples.

    Raises:
        ValueError: no samples, or samples that are NaN or infinite.

    Reference: B. Efron, R. Tibshirani (1993), An Introduction to the Bootstrap, sec. 13.3.
    """
    values, _ = _paired(samples, samples)
    rng = np.random.default_rng(seed)
    medians = np.median(values[rng.integers(0, values.size, size=(_MEDIANS, values.size))], axis=1)
    tail = (1.0 - confidence) / 2
    lower, upper = np.quantile(medians, [tail, 1.0 - tail])
    return float(lower), float(upper)


def mean_interval(scores: npt.ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of the mean of scores of shape (n,): Wilson for 0/1 scores, Student's t otherwise.

    Raises:
        ValueError: no scores, scores that are NaN or infinite, or a single score that is not 0 or 1.

    Reference: E. B. Wilson (1927), JASA 22:209-212.
    """
    values, _ = _paired(scores, scores)
    n, mean = values.size, float(values.mean())
    if np.all((values == 0) | (values == 1)):
        interval = stats.binomtest(int(values.sum()), n).proportion_ci(confidence, method="wilson")
        return float(interval.low), float(interval.high)
    if n < 2:
        raise ValueError("one score has a mean but no interval; give at least two")
    reach = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - reach, mean + reach
