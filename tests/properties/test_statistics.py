"""What must hold for all scores: order, symmetry, agreement of bound, p-value and verdict, and repeatability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from temper.measure import paired_binary
from temper.measure.statistics import DropTest, latency_ratio, mean_interval, paired_drop

LIMITS = st.sampled_from([-0.02, 0.0, 0.003, 0.01, 0.05, 0.3])


@st.composite
def counts(draw: st.DrawFn, largest: int = 3000) -> tuple[int, int, int]:
    n = draw(st.integers(1, largest))
    losses = draw(st.integers(0, min(n, 60)))
    return losses, draw(st.integers(0, min(n - losses, 60))), n


def binary(losses: int, gains: int, n: int, limit: float) -> DropTest:
    reference, candidate = np.ones(n), np.ones(n)
    candidate[:losses] = 0
    reference[losses : losses + gains] = 0
    return paired_drop(reference, candidate, max_drop=limit)


def agrees(test: DropTest) -> None:
    assert test.lower <= test.upper
    assert 0.0 <= test.p_value <= 1.0
    assert (test.verdict == "ACCEPT") == (test.upper < test.max_drop) == (test.p_value < 0.05)
    assert (test.verdict == "REJECT") == (test.lower > test.max_drop)
    if test.verdict == "INCONCLUSIVE" and test.n_needed is not None:
        assert test.n_needed > test.n
    if test.drop >= test.max_drop:
        assert test.n_needed is None


@settings(max_examples=60, deadline=None)
@given(counts(), LIMITS)
def test_binary_bound_p_value_and_verdict_agree(case: tuple[int, int, int], limit: float) -> None:
    test = binary(*case, limit)
    agrees(test)
    assert test.lower <= test.drop <= test.upper


@settings(max_examples=60, deadline=None)
@given(counts(), LIMITS)
def test_a_loss_in_place_of_a_gain_is_never_better(case: tuple[int, int, int], limit: float) -> None:
    losses, gains, n = case
    if gains:
        better = paired_binary.p_value(losses, gains, n, limit)
        assert paired_binary.p_value(losses + 1, gains - 1, n, limit) >= better - 1e-9


@settings(max_examples=60, deadline=None)
@given(counts(), st.sampled_from([0.003, 0.01, 0.05, 0.3]))
def test_an_additional_loss_is_not_better(case: tuple[int, int, int], limit: float) -> None:
    """Where it decides. The confidence set for the disagreement rate moves with the loss; that can show at p near 1."""
    losses, gains, n = case
    if losses + gains < n:
        before = paired_binary.p_value(losses, gains, n, limit)
        assert paired_binary.p_value(losses + 1, gains, n, limit) >= min(before, 0.1) - 0.002


@settings(max_examples=40, deadline=None)
@given(counts(), LIMITS)
def test_swapping_the_models_mirrors_the_binary_bounds(case: tuple[int, int, int], limit: float) -> None:
    losses, gains, n = case
    test, mirrored = binary(losses, gains, n, limit), binary(gains, losses, n, limit)
    width = test.upper - test.lower
    assert mirrored.drop == -test.drop
    assert mirrored.upper == pytest.approx(-test.lower, abs=0.02 * width + 1e-6)
    assert mirrored.lower == pytest.approx(-test.upper, abs=0.02 * width + 1e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 150),
    share=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    shift=st.sampled_from([-0.1, 0.0, 0.005, 0.1]),
    limit=st.sampled_from([0.0, 0.01, 0.08]),
)
def test_continuous_bound_p_value_and_verdict_agree(
    seed: int, n: int, share: float, shift: float, limit: float
) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.random(n)
    candidate = reference - (shift + 0.05 * rng.exponential(size=n)) * (rng.random(n) < share)
    test = paired_drop(reference, candidate, max_drop=limit, seed=3)
    agrees(test)
    assert test == paired_drop(reference, candidate, max_drop=limit, seed=3)
    mirrored = paired_drop(candidate, reference, max_drop=-limit, seed=3)
    assert mirrored.upper == pytest.approx(-test.lower)
    assert mirrored.lower == pytest.approx(-test.upper)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(40, 200), st.floats(0.01, 0.5))
def test_a_common_loss_never_helps(seed: int, n: int, loss: float) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.random(n)
    candidate = reference + rng.normal(0, 0.1, n)
    before = paired_drop(reference, candidate, max_drop=0.02)
    after = paired_drop(reference, candidate - loss, max_drop=0.02)
    # Up to resampling: a difference that ceases to be negligible gets a random weight of its own.
    assert after.p_value >= before.p_value - 0.02
    assert after.upper > before.upper


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-6, 10.0), min_size=5, max_size=40), st.floats(0.1, 10.0))
def test_latency_ratio_scales_and_inverts_nothing_by_chance(blocks: list[float], factor: float) -> None:
    baseline = np.array(blocks)
    estimate = latency_ratio(baseline, factor * baseline)
    assert estimate.ratio == pytest.approx(factor)
    assert estimate.lower == pytest.approx(factor)
    assert estimate.upper == pytest.approx(factor)
    jittered = baseline * np.random.default_rng(0).lognormal(0, 0.1, baseline.size)
    one, again = latency_ratio(baseline, jittered, seed=1), latency_ratio(baseline, jittered, seed=1)
    assert one == again
    assert one.lower <= one.ratio <= one.upper


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_mean_interval_contains_the_mean_and_stays_in_range(scores: list[float]) -> None:
    low, high = mean_interval(scores)
    assert -1e-12 <= low <= np.mean(scores) + 1e-12
    assert np.mean(scores) - 1e-12 <= high <= 1 + 1e-12
