"""Exact unconditional non-inferiority test for paired 0/1 scores.

Of `n` examples, `losses` were right before and are wrong now, `gains` the reverse; the observed drop is
`(losses - gains) / n`. The test asks whether the true drop can still be as large as a limit.

The nuisance parameter is the true disagreement rate. Given the rate, a larger drop makes few losses less likely, so
that the test, computed at the limit itself, is valid for every larger drop too.

Reference: T. Tango (1998), Statistics in Medicine 17:891-908 (score statistic, closed-form restricted estimate);
    H.-M. Hsueh, J.-P. Liu, J. J. Chen (2001), Biometrics 57:478-483 (exact unconditional test for paired binary
    non-inferiority); R. L. Berger, D. D. Boos (1994), JASA 89:1012-1016 (p-value maximized over a confidence set).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray = npt.NDArray[np.float64]
Counts = FloatArray | float

# Above this many disagreements the enumeration costs more than it corrects: the score test with continuity correction
# then has a size between 4.5 % and 5 % (enumerated in tests/unit/measure/test_statistics.py).
EXACT_DISAGREEMENTS = 1_000
# The share of the error rate that Berger and Boos' confidence set for the disagreement rate may spend.
_NUISANCE_SHARE = 0.02
# Windows reach this many standard deviations around the mean; beyond lies less than 1e-8 of the probability.
_WINDOW_SD = 6.0
_TIE = 1e-9


def _restricted_gain_rate(losses: Counts, gains: Counts, n: float, drop: float) -> FloatArray:
    """Maximum-likelihood estimate of the gain rate when the true drop is `drop`.

    Reference: Tango (1998), the larger root of his quadratic equation.
    """
    linear = np.asarray(losses + gains + drop * (losses - gains) - 2.0 * n * drop, dtype=np.float64)
    constant = np.asarray(gains * drop * (1.0 - drop), dtype=np.float64)
    root = np.sqrt(np.maximum(linear * linear + 8.0 * n * constant, 0.0))
    # The textbook root cancels when `linear` is negative; the second form is the same number without the cancellation.
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.where(linear > 0, (linear + root) / (4.0 * n), 2.0 * constant / (root - linear))
    clipped: FloatArray = np.clip(np.nan_to_num(rate), max(0.0, -drop), (1.0 - drop) / 2.0)
    return clipped


def score_statistic(losses: Counts, gains: Counts, n: int, drop: float) -> FloatArray:
    """Tango's score statistic of H0: true drop == `drop`; strongly negative speaks for a smaller drop.

    `losses` and `gains` are counts or broadcastable arrays of counts with losses + gains <= n; -1 < drop < 1.
    """
    variance = n * (2.0 * _restricted_gain_rate(losses, gains, n, drop) + drop * (1.0 - drop))
    distance = losses - gains - n * drop
    statistic: FloatArray = np.where(variance > 0, distance / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0)
    return statistic


def _largest_losses(disagreements: FloatArray, n: int, drop: float, observed: float) -> FloatArray:
    """For each count of disagreements, the most losses whose statistic is at most `observed`; -1 where there is none.

    Among equally many disagreements the statistic grows with the losses: the rejection region is one threshold a count.
    """
    low = np.full_like(disagreements, -1.0)
    high = disagreements + 1.0
    while np.any(high - low > 1.0):
        middle = np.floor((low + high) / 2.0)
        inside = np.clip(middle, 0.0, disagreements)
        extreme = score_statistic(inside, disagreements - inside, n, drop) <= observed + _TIE
        move = high - low > 1.0
        low = np.where(move & extreme, middle, low)
        high = np.where(move & ~extreme, middle, high)
    return low


def _region_probability(
    rates: FloatArray, counts: FloatArray, most_losses: FloatArray, n: int, drop: float
) -> FloatArray:
    """P(losses <= most_losses[disagreements]) at each disagreement rate, shape (rates,), when the true drop is `drop`.

    The disagreements are binomial (n, rate); given them the losses are binomial with probability (1 + drop / rate) / 2.
    """
    rate = rates[:, None]
    log_mass = (
        special.gammaln(n + 1.0)
        - special.gammaln(counts + 1.0)
        - special.gammaln(n - counts + 1.0)
        + special.xlogy(counts, rate)
        + special.xlog1py(n - counts, -rate)
    )
    mass = np.exp(log_mass)
    with np.errstate(invalid="ignore", divide="ignore"):
        loss_share = np.clip(np.where(rate > 0, (1.0 + drop / rate) / 2.0, 0.5), 0.0, 1.0)
    # Only cells that carry probability are worth an incomplete beta function.
    row, column = np.nonzero(mass > 1e-13)
    total, most, share = counts[column], most_losses[column], loss_share[row, 0]
    below = np.where(most >= total, 1.0, 0.0)
    inner = (most >= 0) & (most < total)
    below[inner] = special.betainc(total[inner] - most[inner], most[inner] + 1.0, 1.0 - share[inner])
    return np.asarray(np.bincount(row, weights=mass[row, column] * below, minlength=len(rates)), dtype=np.float64)


def _disagreement_interval(disagreements: int, n: int, outside: float) -> tuple[float, float]:
    """Clopper-Pearson interval for the disagreement rate that misses with probability at most `outside`."""
    low = float(special.betaincinv(disagreements, n - disagreements + 1, outside / 2)) if disagreements else 0.0
    agreements = n - disagreements
    high = float(special.betaincinv(disagreements + 1, agreements, 1 - outside / 2)) if agreements else 1.0
    return low, high


def p_value(losses: int, gains: int, n: int, drop: float, *, alpha: float = 0.05) -> float:
    """p-value of H0: true drop >= `drop`; a test at level `alpha` is valid whatever the disagreement rate is."""
    if abs(drop) >= 1.0:
        return 0.0 if drop >= 1.0 else 1.0
    disagreements = losses + gains
    if disagreements > EXACT_DISAGREEMENTS:
        return _score_p_value(losses, gains, n, drop)
    spent = _NUISANCE_SHARE * alpha
    low, high = _disagreement_interval(disagreements, n, spent)
    # A drop needs at least as many disagreements. At a negative limit fewer are possible: the drop then lies over the
    # limit, nearest to it where every disagreement is a gain.
    low = max(low, drop)
    if high < low:  # so few disagreements that, within the confidence set, the drop cannot be that large
        return spent
    observed = float(score_statistic(losses, gains, n, drop))
    fewest = n * low - _WINDOW_SD * math.sqrt(n * low * (1 - low)) - 12
    most = n * high + _WINDOW_SD * math.sqrt(n * high * (1 - high)) + 12
    counts = np.arange(max(0, math.floor(fewest)), min(n, math.ceil(most)) + 1, dtype=np.float64)
    most_losses = _largest_losses(counts, n, drop, observed)

    # Rates evenly spaced in asin(sqrt(rate)), where one standard deviation of the count has the same length everywhere.
    start, stop = math.asin(math.sqrt(low)), math.asin(math.sqrt(min(high, 1.0)))
    points = int(np.clip(math.ceil((stop - start) * 2.0 * math.sqrt(n) / 0.3), 24, 80)) + 1
    angles = np.linspace(start, stop, points)
    worst = 0.0
    for _ in range(2):
        rates = np.clip(np.sin(angles) ** 2, low, high)
        probabilities = _region_probability(rates, counts, most_losses, n, drop)
        best = int(np.argmax(probabilities))
        worst = max(worst, float(probabilities[best]))
        angles = np.linspace(angles[max(best - 1, 0)], angles[min(best + 1, len(angles) - 1)], 9)
    return min(1.0, worst + spent)


def _score_p_value(losses: int, gains: int, n: int, drop: float) -> float:
    statistic = float(score_statistic(losses, gains, n, drop))
    distance = losses - gains - n * drop
    if statistic == 0.0 or distance + 0.5 >= 0:
        return float(special.ndtr(max(statistic, 0.0)))
    return float(special.ndtr(statistic * (distance + 0.5) / distance))


def upper_bound(losses: int, gains: int, n: int, *, alpha: float, limit: float, p_at_limit: float) -> float:
    """One-sided upper bound of the drop at level 1 - alpha: the drop at which `p_value` crosses alpha.

    The p-value of a discrete test is not exactly monotone in the drop, so the search starts from the decision at
    `limit` (`p_at_limit`) and stays on its side: the bound lies under the limit if and only if p_at_limit < alpha.
    """

    def excess(drop: float) -> float:
        # On the normal scale the p-value is nearly a straight line, which the secant steps below like.
        p = min(max(p_value(losses, gains, n, drop, alpha=alpha), 1e-12), 1 - 1e-12)
        return float(special.ndtri(p)) + z

    z = float(-special.ndtri(alpha))

    # A Wilson-like bound to begin with; both ends are then moved until they enclose the crossing.
    point = (losses - gains) / n
    rate = (losses + gains) / n
    reach = z * math.sqrt(max(rate - point * point, 0.0) / n + (z / n) ** 2 / 4) + z * z / (2 * n)
    guess = (point + reach) / (1 + z * z / n)
    floor, ceiling = (-1.0, limit) if p_at_limit < alpha else (limit, 1.0)
    step = max(z * math.sqrt(max(rate, 1.0 / n) / n) / 8, 1e-7)
    return max(point, _crossing(excess, guess, floor, ceiling, step))


def _crossing(excess: Callable[[float], float], guess: float, floor: float, ceiling: float, step: float) -> float:
    """Where the falling function `excess` passes zero: positive at or under `floor`, negative at or over `ceiling`."""
    margin = 1e-3 * (ceiling - floor)
    low, high, at_low, at_high = floor, ceiling, math.nan, math.nan

    def look(drop: float) -> None:
        nonlocal low, high, at_low, at_high
        value = excess(drop)
        if value > 0:
            low, at_low = drop, value
        else:
            high, at_high = drop, value

    look(min(max(guess, floor + margin), ceiling - margin))
    # Walk from the guess, doubling the stride, until the sign changes or a known side is reached.
    stride = step
    while math.isnan(at_high) and low + stride < ceiling:
        look(low + stride)
        stride *= 2
    while math.isnan(at_low) and high - stride > floor:
        look(high - stride)
        stride *= 2
    tolerance = min(step / 100, 1e-4)
    turn = 0
    while high - low > tolerance:
        # Every third step halves; the others follow the secant, kept off the ends so that both of them move.
        middle = (low + high) / 2
        if turn % 3 < 2 and not math.isnan(at_low + at_high):
            secant = low + (high - low) * at_low / (at_low - at_high)
            middle = min(max(secant, low + tolerance / 3), high - tolerance / 3)
        look(middle)
        turn += 1
    return (low + high) / 2


def examples_needed(losses: int, gains: int, n: int, limit: float, *, alpha: float, power: float) -> int | None:
    """How many examples would prove the drop under `limit` with probability `power`, were the observed rates true.

    None where the observed drop is not under the limit. Without any disagreement: the fewest examples that prove it.
    The power is approximated by the normal distribution, with one over the gap added because counts are whole.
    """
    gap = limit - (losses - gains) / n
    if gap <= 0:
        return None
    loss_rate, gain_rate = losses / n, gains / n
    if losses + gains == 0:
        fewest = max(1, math.ceil(math.log(alpha * (1 - _NUISANCE_SHARE)) / math.log1p(-limit)))
        while p_value(0, 0, fewest, limit, alpha=alpha) >= alpha:
            fewest += 1
        return fewest
    restricted = float(_restricted_gain_rate(loss_rate, gain_rate, 1.0, limit))
    spread_at_limit = math.sqrt(2.0 * restricted + limit * (1.0 - limit))
    spread = math.sqrt(max(loss_rate + gain_rate - (loss_rate - gain_rate) ** 2, 0.0))
    reach = float(-special.ndtri(alpha)) * spread_at_limit + float(special.ndtri(power)) * spread
    return math.ceil((reach / gap) ** 2 + 1.0 / gap)
