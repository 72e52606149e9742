"""The tests and intervals against closed forms, full enumeration, and scipy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats

from temper.measure import paired_binary, paired_continuous
from temper.measure.statistics import (
    DropTest,
    latency_ratio,
    mean_interval,
    median_interval,
    paired_drop,
    set_metric_drop,
)

FloatArray = npt.NDArray[np.float64]


def zero_one(losses: int, gains: int, n: int) -> tuple[FloatArray, FloatArray]:
    reference, candidate = np.ones(n), np.ones(n)
    candidate[:losses] = 0
    reference[losses : losses + gains] = 0
    return reference, candidate


def binary(losses: int, gains: int, n: int, limit: float) -> DropTest:
    return paired_drop(*zero_one(losses, gains, n), max_drop=limit)


# 0/1 scores: the exact test


def log_multinomial(losses: FloatArray, gains: FloatArray, n: int, rate: float, drop: float) -> FloatArray:
    mass: FloatArray = (
        special.gammaln(n + 1)
        - special.gammaln(losses + 1)
        - special.gammaln(gains + 1)
        - special.gammaln(n - losses - gains + 1)
        + special.xlogy(losses, (rate + drop) / 2)
        + special.xlogy(gains, (rate - drop) / 2)
        + special.xlogy(n - losses - gains, 1 - rate)
    )
    return mass


@pytest.mark.parametrize("n", [4, 11, 20, 30])
@pytest.mark.parametrize("limit", [-0.5, -0.2, 0.0, 0.01, 0.05, 0.13, 0.4])
def test_size_by_enumeration_of_every_outcome(n: int, limit: float) -> None:
    p = {(b, c): paired_binary.p_value(b, c, n, limit) for b in range(n + 1) for c in range(n + 1 - b)}
    rejected = np.array([key for key, value in p.items() if value < 0.05], dtype=np.float64).reshape(-1, 2)
    # At the limit, and worse than the limit (a negative limit leaves room for models that hardly disagree).
    for drop in {limit, limit + 0.013, max(limit, 0.0), limit / 2 if limit < 0 else limit}:
        for rate in np.linspace(abs(drop), 1.0, 173):
            size = np.exp(log_multinomial(rejected[:, 0], rejected[:, 1], n, float(rate), drop)).sum()
            assert size <= 0.05, (rate, drop)
    # Among equally many disagreements one loss more is never better for the candidate.
    for b, c in p:
        if c:
            assert p[b + 1, c - 1] >= p[b, c] - 1e-12


def test_the_test_is_not_merely_cautious() -> None:
    """A size far under 5 % would be valid and useless."""
    n, limit = 30, 0.1
    b, c = (
        np.array(x, dtype=np.float64)
        for x in zip(
            *[(b, c) for b in range(n + 1) for c in range(n + 1 - b) if paired_binary.p_value(b, c, n, limit) < 0.05],
            strict=True,
        )
    )
    sizes = [np.exp(log_multinomial(b, c, n, float(rate), limit)).sum() for rate in np.linspace(limit, 1, 173)]
    assert max(sizes) > 0.04


@pytest.mark.parametrize(
    ("n", "limit", "rate"), [(120_000, 0.01, 0.01), (20_000, 0.01, 0.06), (10_000, 0.1, 0.12), (4_000, 0.02, 0.9)]
)
def test_size_beyond_the_enumeration(n: int, limit: float, rate: float) -> None:
    """Over EXACT_DISAGREEMENTS the corrected score test takes over; its size, summed over all counts that matter."""
    spread = math.sqrt(n * rate * (1 - rate))
    counts = np.arange(math.floor(n * rate - 6 * spread), min(n, math.ceil(n * rate + 6 * spread)) + 1)
    critical = []
    for total in counts:
        low, high = -1, int(total) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if paired_binary._score_p_value(middle, int(total) - middle, n, limit) < 0.05:
                low = middle
            else:
                high = middle
        critical.append(low)
    mass = stats.binom.pmf(counts, n, rate)
    size = float(np.sum(mass * stats.binom.cdf(critical, counts, min(1.0, (1 + limit / rate) / 2))))
    assert 0.045 < size <= 0.05


@pytest.mark.parametrize("n", [30, 299, 1000, 8000])
def test_no_disagreement_has_a_closed_form(n: int) -> None:
    test = binary(0, 0, n, 0.05)
    # Without losses p = (1 - limit)^n, plus the thousandth spent on the disagreement rate.
    assert test.upper == pytest.approx(1 - 0.049 ** (1 / n), rel=0.01)
    assert test.lower == pytest.approx(-test.upper)
    assert test.p_value == pytest.approx(0.95**n + 0.001, rel=1e-6) or n > 130
    assert (test.drop, test.disagreements) == (0.0, 0)


def test_no_disagreement_says_how_many_would_do() -> None:
    needed = binary(0, 0, 50, 0.01).n_needed
    assert needed == 301  # log(0.049) / log(0.99) = 300.1
    assert binary(0, 0, needed, 0.01).verdict == "ACCEPT"
    assert binary(0, 0, needed - 1, 0.01).verdict == "INCONCLUSIVE"


def test_equality_limit_agrees_with_mcnemar() -> None:
    """At limit 0 the statistic is McNemar's, and for many disagreements the p-value is the binomial sign test's."""
    assert paired_binary.score_statistic(12, 30, 500, 0.0) == pytest.approx((12 - 30) / math.sqrt(42))
    exact = stats.binomtest(150, 350, 0.5, alternative="less").pvalue
    assert paired_binary.p_value(150, 200, 5000, 0.0) == pytest.approx(exact, abs=0.0025)


def test_statistic_maximizes_the_restricted_likelihood() -> None:
    losses, gains, n, drop = 14, 5, 80, 0.07
    rates = np.linspace(1e-6, (1 - drop) / 2 - 1e-6, 400_001)
    likelihood = (
        losses * np.log(rates + drop) + gains * np.log(rates) + (n - losses - gains) * np.log1p(-2 * rates - drop)
    )
    best = rates[np.argmax(likelihood)]
    expected = (losses - gains - n * drop) / math.sqrt(n * (2 * best + drop - drop**2))
    assert paired_binary.score_statistic(losses, gains, n, drop) == pytest.approx(expected, rel=1e-5)


def test_p_value_is_the_enumerated_supremum() -> None:
    """Directly from its definition: the worst disagreement rate in the confidence set, over all outcomes as extreme."""
    losses, gains, n, drop = 2, 3, 60, 0.15
    b, c = (x.ravel().astype(np.float64) for x in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    b, c = b[b + c <= n], c[b + c <= n]
    observed = paired_binary.score_statistic(losses, gains, n, drop)
    extreme = paired_binary.score_statistic(b, c, n, drop) <= observed + 1e-9
    interval = stats.binomtest(losses + gains, n).proportion_ci(0.999, method="exact")
    rates = np.linspace(max(drop, interval.low), interval.high, 2000)
    worst = max(np.exp(log_multinomial(b[extreme], c[extreme], n, float(rate), drop)).sum() for rate in rates)
    assert paired_binary.p_value(losses, gains, n, drop) == pytest.approx(worst + 0.001, rel=1e-4)


def test_one_percent_disagreement_needs_more_than_360_examples() -> None:
    rng = np.random.default_rng(0)
    share = {}
    for n in (360, 1800):
        counts = rng.multinomial(n, (0.005, 0.005, 0.99), size=400)[:, :2]
        outcomes, times = np.unique(counts, axis=0, return_counts=True)
        accepted = [paired_binary.p_value(int(b), int(c), n, 0.01) < 0.05 for b, c in outcomes]
        share[n] = float(np.sum(times * np.array(accepted)) / 400)
    assert share[1800] > 0.95
    assert 0.3 < share[360] < 0.55


@pytest.mark.parametrize(("losses", "gains"), [(5, 5), (20, 20), (25, 10)])
def test_n_needed_keeps_its_promise(losses: int, gains: int) -> None:
    needed = binary(losses, gains, 2000, 0.02).n_needed
    assert needed is not None
    rates = (losses / 2000, gains / 2000)
    counts = np.random.default_rng(1).multinomial(needed, (*rates, 1 - sum(rates)), size=400)[:, :2]
    outcomes, times = np.unique(counts, axis=0, return_counts=True)
    accepted = [paired_binary.p_value(int(b), int(c), needed, 0.02) < 0.05 for b, c in outcomes]
    assert 0.72 < np.sum(times * np.array(accepted)) / 400 < 0.93


@pytest.mark.parametrize(
    ("losses", "gains", "n", "verdict"),
    [(5, 5, 2000, "ACCEPT"), (60, 5, 1000, "REJECT"), (3, 3, 300, "INCONCLUSIVE"), (30, 5, 1000, "REJECT")],
)
def test_binary_verdicts(losses: int, gains: int, n: int, verdict: str) -> None:
    test = binary(losses, gains, n, 0.01)
    assert test.verdict == verdict
    assert test.drop == pytest.approx((losses - gains) / n)
    assert test.disagreements == losses + gains
    assert "exact" in test.method
    assert (test.n_needed is None) == (test.drop >= 0.01)


def test_many_disagreements_use_the_score_test() -> None:
    few, many = binary(495, 500, 20_000, 0.005), binary(510, 515, 20_000, 0.005)
    assert "exact" in few.method
    assert "continuity" in many.method
    # Both sides of the switch tell the same story.
    assert many.upper == pytest.approx(few.upper, rel=0.05)
    assert many.lower == pytest.approx(few.lower, rel=0.05)


# Continuous scores


def test_normal_differences_agree_with_student() -> None:
    rng = np.random.default_rng(0)
    reference = rng.random(2000)
    candidate = reference - rng.normal(0.002, 0.1, 2000)
    test = paired_drop(reference, candidate, max_drop=0.01)
    student = stats.ttest_1samp(reference - candidate, 0.01, alternative="less")
    interval = student.confidence_interval(0.95)
    assert test.upper >= interval.high
    assert test.upper == pytest.approx(interval.high, abs=0.0006)
    assert student.pvalue <= test.p_value <= 3 * student.pvalue + 0.001
    assert test.method.startswith("largest bound of paired t")


def accepted_at_the_limit(losses: object, n: int, proofs: int) -> int:
    rng = np.random.default_rng(7)
    count = 0
    for i in range(proofs):
        reference = rng.random(n)
        difference = losses(rng, n)  # type: ignore[operator]
        count += paired_drop(reference, reference - difference, max_drop=0.01, seed=i).verdict == "ACCEPT"
    return count


@pytest.mark.parametrize(
    "losses",
    [
        lambda rng, n: rng.normal(0.01, 0.1, n),
        lambda rng, n: 0.01 + 0.05 * (rng.exponential(1, n) - 1),
        lambda rng, n: 0.01 + 0.03 * (rng.lognormal(0, 1, n) - math.exp(0.5)),
        lambda rng, n: rng.uniform(0, 2 / 3, n) * (rng.random(n) < 0.03),
    ],
    ids=["normal", "exponential", "lognormal", "rare"],
)
def test_continuous_size(losses: object) -> None:
    # 200 proofs at 5 %: more than 20 errors happen by chance once in a thousand.
    assert accepted_at_the_limit(losses, 100, 200) <= 20


def test_the_most_cautious_of_three_bounds_counts() -> None:
    rng = np.random.default_rng(0)
    deciding = set()
    for share, skew in ((1.0, -1.0), (1.0, 1.0), (0.08, 1.0)) * 10:
        reference = rng.random(200)
        losses = skew * 0.03 * rng.lognormal(0, 1, 200) * (rng.random(200) < share)
        losses[:10] += 0.01
        upper = paired_drop(reference, reference - losses, max_drop=0.05).upper
        losses = reference - (reference - losses)
        bounds = [
            paired_continuous._student(losses, 0.05, 0.05)[0],
            paired_continuous._studentized_bootstrap(losses, 0.05, 0.05, 0)[0],
            paired_continuous._gaffke(losses, 0.05, float(losses.max()), 0.05, 0)[0],
        ]
        assert upper == pytest.approx(max(bounds))
        deciding.add(int(np.argmax(bounds)))
    assert deciding == {0, 1, 2}  # none of the three is idle


def test_identical_scores_prove_only_what_their_number_allows() -> None:
    scores = np.linspace(0.0, 2.0, 500)
    test = paired_drop(scores, scores, max_drop=0.02)
    assert test.upper == pytest.approx(2.0 * (1 - 0.05 ** (1 / 500)))
    assert (test.verdict, test.disagreements) == ("ACCEPT", 0)
    scores = np.linspace(0.0, 2.0, 100)
    fewer = paired_drop(scores, scores, max_drop=0.02)
    assert fewer.verdict == "INCONCLUSIVE"
    assert fewer.n_needed is not None
    more = np.linspace(0.0, 2.0, fewer.n_needed)
    assert paired_drop(more, more, max_drop=0.02).verdict == "ACCEPT"


def test_rounding_noise_proves_no_more_than_identity() -> None:
    scores = np.linspace(0.0, 1.0, 100)
    noisy = scores + 1e-7 * np.random.default_rng(0).normal(size=100)
    assert paired_drop(scores, noisy, max_drop=0.01).verdict == "INCONCLUSIVE"


def test_few_rare_losses_get_the_clopper_pearson_bound() -> None:
    reference = np.linspace(0.0, 1.0, 400)
    reference[:4] = 1.0
    candidate = reference.copy()
    candidate[:4] = 0.0  # four losses of the whole range
    test = paired_drop(reference, candidate, max_drop=0.01, kind="continuous")
    exact = stats.binomtest(4, 400, alternative="less").proportion_ci(0.95, method="exact").high
    assert test.upper == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("n", [1, 2, 29])
def test_too_few_continuous_scores_never_prove_anything(n: int) -> None:
    scores = np.linspace(0.2, 0.7, n)
    for candidate in (scores, scores + 5.0, scores - 5.0):
        test = paired_drop(scores, candidate, max_drop=0.01)
        assert (test.verdict, test.lower, test.upper, test.p_value) == ("INCONCLUSIVE", -math.inf, math.inf, 1.0)


def test_constant_scores_show_no_range() -> None:
    test = paired_drop(np.full(500, 0.3), np.full(500, 0.3), max_drop=0.01)
    assert (test.verdict, test.n_needed) == ("INCONCLUSIVE", None)


def test_a_great_continuous_loss_is_rejected() -> None:
    rng = np.random.default_rng(0)
    reference = rng.random(200)
    test = paired_drop(reference, reference - 0.2 + rng.normal(0, 0.05, 200), max_drop=0.01)
    assert (test.verdict, test.n_needed) == ("REJECT", None)
    assert test.lower > 0.15


def test_continuous_n_needed_keeps_its_promise() -> None:
    rng = np.random.default_rng(3)
    reference = rng.random(4000)
    needed = paired_drop(reference, reference - rng.normal(0, 0.1, 4000), max_drop=0.02).n_needed
    assert needed is not None
    verdicts = []
    for i in range(150):
        scores = rng.random(needed)
        verdicts.append(paired_drop(scores, scores - rng.normal(0, 0.1, needed), max_drop=0.02, seed=i).verdict)
    assert 0.68 < verdicts.count("ACCEPT") / 150 < 0.93


@pytest.mark.parametrize(
    ("reference", "candidate", "options", "message"),
    [
        ([], [], {}, "one shape"),
        ([1.0, 0.0], [1.0], {}, "one shape"),
        ([[1.0]], [[1.0]], {}, "one shape"),
        ([1.0, math.nan], [1.0, 1.0], {}, "1 of 4 scores"),
        ([1.0, 0.5], [1.0, 1.0], {"kind": "binary"}, "0 or 1"),
        ([1.0], [1.0], {"max_drop": 1.0}, r"\(-1, 1\)"),
        ([1.0], [1.0], {"max_drop": math.inf}, "finite"),
        ([1.0], [1.0], {"confidence": 0.2}, "confidence"),
    ],
)
def test_paired_drop_refuses(reference: object, candidate: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_drop(reference, candidate, **{"max_drop": 0.01, **options})  # type: ignore[arg-type]


# Set metrics


def spearman_case(n: int, noise: float, seed: int = 0) -> object:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    reference = truth + 0.5 * rng.normal(size=n)
    candidate = reference + noise * rng.normal(size=n)

    def metric(at: npt.NDArray[np.int64]) -> tuple[float, float]:
        ranks = [np.argsort(np.argsort(x[at])) for x in (truth, reference, candidate)]
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1]), float(np.corrcoef(ranks[0], ranks[2])[0, 1])

    return metric


def test_mean_as_a_set_metric_agrees_with_student() -> None:
    rng = np.random.default_rng(0)
    difference = rng.normal(0.0, 0.1, 800)
    test = set_metric_drop(lambda at: (float(difference[at].mean()), 0.0), 800, max_drop=0.02, resamples=2000)
    interval = stats.ttest_1samp(difference, 0.02, alternative="less").confidence_interval(0.95)
    assert test.drop == pytest.approx(difference.mean())
    assert test.upper == pytest.approx(interval.high, abs=0.0006)
    assert test.disagreements is None


@pytest.mark.parametrize(("noise", "verdict"), [(0.1, "ACCEPT"), (1.0, "REJECT")])
def test_set_metric_verdicts(noise: float, verdict: str) -> None:
    test = set_metric_drop(spearman_case(500, noise), 500, max_drop=0.05, resamples=300)  # type: ignore[arg-type]
    assert test.verdict == verdict
    assert (test.p_value < 0.05) == (verdict == "ACCEPT")


def test_set_metric_without_difference_is_inconclusive() -> None:
    test = set_metric_drop(lambda at: (float(at.mean()), float(at.mean())), 200, max_drop=0.1, resamples=300)
    assert (test.verdict, test.upper) == ("INCONCLUSIVE", math.inf)


def test_set_metric_with_two_odd_examples_is_inconclusive() -> None:
    scores = np.zeros(1000)
    scores[:2] = 1.0
    test = set_metric_drop(lambda at: (float(scores[at].mean()), 0.0), 1000, max_drop=0.1, resamples=300)
    assert test.verdict == "INCONCLUSIVE"
    assert test.n_needed is not None
    assert test.n_needed > 1000


def test_degenerate_resamples_are_counted() -> None:
    def metric(at: npt.NDArray[np.int64]) -> tuple[float, float]:
        return (math.nan if not np.any(at == 0) else 1.0), 0.5

    with pytest.raises(ValueError, match=r"on [1-9]\d* of \d+ of the"):
        set_metric_drop(metric, 100, max_drop=0.1)


def test_set_metric_refuses_too_little() -> None:
    with pytest.raises(ValueError, match="30 examples"):
        set_metric_drop(lambda at: (0.0, 0.0), 20, max_drop=0.1)
    with pytest.raises(ValueError, match="200 resamples"):
        set_metric_drop(lambda at: (0.0, 0.0), 50, max_drop=0.1, resamples=50)


# Latency and single scores


def test_latency_ratio_cancels_a_common_drift() -> None:
    rng = np.random.default_rng(0)
    drift = np.linspace(1.0, 3.0, 40)
    baseline = 0.010 * drift * (1 + 0.01 * rng.normal(size=40))
    candidate = 0.005 * drift * (1 + 0.01 * rng.normal(size=40))
    estimate = latency_ratio(baseline, candidate)
    assert estimate.lower < 0.5 < estimate.upper
    assert estimate.upper - estimate.lower < 0.02
    assert estimate.ratio == pytest.approx(float(np.median(candidate / baseline)))
    assert estimate.pairs == 40
    assert latency_ratio(baseline, baseline) == latency_ratio(candidate, candidate)


def test_latency_interval_covers_the_median() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        estimate = latency_ratio(np.ones(25), rng.lognormal(0.0, 0.1, 25), seed=seed)
        covered += estimate.lower <= 1.0 <= estimate.upper
    assert 0.90 <= covered / 300 <= 0.99


@pytest.mark.parametrize(
    ("baseline", "candidate"),
    [
        ([1.0] * 4, [1.0] * 4),
        ([1.0] * 6, [1.0] * 5),
        ([1.0] * 5, [1.0, 1.0, 0.0, 1.0, 1.0]),
        ([1.0] * 5, [math.nan] * 5),
    ],
)
def test_latency_ratio_refuses(baseline: list[float], candidate: list[float]) -> None:
    with pytest.raises(ValueError, match="block"):
        latency_ratio(baseline, candidate)


def test_mean_interval_is_wilson_for_zero_one_scores() -> None:
    low, high = mean_interval([1.0] * 9 + [0.0])
    z, n, p = stats.norm.ppf(0.975), 10, 0.9
    centre, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert low == pytest.approx((centre - reach) / (1 + z * z / n))
    assert high == pytest.approx((centre + reach) / (1 + z * z / n))


def test_mean_interval_is_student_otherwise() -> None:
    scores = np.array([0.1, 0.25, 0.4, 0.9])
    expected = stats.t.interval(0.9, 3, loc=scores.mean(), scale=stats.sem(scores))
    assert mean_interval(scores, confidence=0.9) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least two"):
        mean_interval([0.5])


def test_median_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = [low <= 0 <= high for low, high in (median_interval(rng.standard_normal(40)) for _ in range(200))]
    assert 0.9 <= np.mean(held) <= 0.99
    low, high = median_interval(rng.standard_normal(4000))
    assert high - low < 0.15, "it is the interval of the median, not of single samples"
    with pytest.raises(ValueError, match="n >= 1"):
        median_interval([])
