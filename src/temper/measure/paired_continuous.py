"""Upper bounds of a mean difference of continuous scores that hold when losses are skewed or rare.

Reference: B. Efron, R. Tibshirani (1993), An Introduction to the Bootstrap, sec. 12.5 (studentized bootstrap);
    N. Gaffke (2005), Mathematical Methods of Statistics 14, as stated in M. Phan, P. Thomas, E. Learned-Miller (2021),
    arXiv 2106.03163 (a bound for values with a known worst case: exact for 0/1 values, else known by simulation).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray = npt.NDArray[np.float64]

# With fewer continuous scores no method below holds its 5 % on skewed differences, so no bound is stated.
FEWEST_EXAMPLES = 30
# With fewer losses among mostly equal scores the sample does not show how bad losses get; the range of the scores does.
_FEW_LOSSES = 10
# Differences under this share of the limit cannot matter even if every example had one.
_NEGLIGIBLE = 0.01
_RESAMPLES = 1_999
_DRAWS = 20_000_000  # resampled values after which many examples get fewer resamples
_BLOCK = 4_000_000  # resampled values held in memory at once


def _few_losses(differences: FloatArray, limit: float) -> bool:
    material = np.abs(differences) > _NEGLIGIBLE * abs(limit)
    losses = int(np.sum(material & (differences > 0)))
    return losses < _FEW_LOSSES and 2 * int(np.sum(material)) < differences.size


def mean_bound(differences: FloatArray, limit: float, span: float, alpha: float, seed: int) -> tuple[float, float, str]:
    """Upper bound of the mean of `differences` at level 1 - alpha, p-value of H0: mean >= limit, and the method.

    `differences` has shape (n,), n >= 2; none can exceed `span`.
    """
    # One difference everywhere gives nothing to resample: like few losses, it shows nothing of what else may come.
    if _few_losses(differences, limit) or float(differences.std()) <= 1e-12 * span:
        upper, p = _gaffke(differences, limit, span, alpha, seed)
        return upper, p, "Gaffke, worst loss = range of the scores"
    bounds = (
        _student(differences, limit, alpha),
        _studentized_bootstrap(differences, limit, alpha, seed),
        _gaffke(differences, limit, float(differences.max()), alpha, seed),
    )
    upper, p = (max(values) for values in zip(*bounds, strict=True))
    return upper, p, "largest bound of paired t, studentized bootstrap, Gaffke"


def _student(differences: FloatArray, limit: float, alpha: float) -> tuple[float, float]:
    """Upper bound of the mean, and p-value of H0: mean >= limit."""
    n, mean = differences.size, float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    upper = mean - float(special.stdtrit(n - 1, alpha)) * error
    return upper, float(special.stdtr(n - 1, (mean - limit) / error))


def _blocks(n: int, alpha: float) -> Iterator[int]:
    """How many resamples of n values to draw at a time."""
    resamples = max(math.ceil(20 / alpha) - 1, min(_RESAMPLES, _DRAWS // n))
    rows = max(1, _BLOCK // n)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def _studentized_bootstrap(differences: FloatArray, limit: float, alpha: float, seed: int) -> tuple[float, float]:
    """Upper bound of the mean, and p-value of H0: mean >= limit."""
    n, mean = differences.size, float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    rng = np.random.default_rng(seed)
    centred = differences - mean
    pieces = []
    for rows in _blocks(n, alpha):
        sample = centred[rng.integers(0, n, size=(rows, n), dtype=np.int32)]
        shift = sample.mean(axis=1)
        variance = np.maximum(np.einsum("ij,ij->i", sample, sample) / n - shift * shift, 0.0) * n / (n - 1)
        # A resample without spread says nothing about it; counting it as extreme keeps the bound cautious.
        pieces.append(np.where(variance > 0, shift / np.sqrt(np.where(variance > 0, variance, 1.0) / n), -np.inf))
    statistics = np.sort(np.concatenate(pieces))
    rank = math.floor(alpha * (statistics.size + 1) + 1e-9)
    observed = (mean - limit) / error
    p = (1 + int(np.searchsorted(statistics, observed, side="right"))) / (statistics.size + 1)
    return mean - float(statistics[rank - 1]) * error, p


def _gaffke(differences: FloatArray, limit: float, worst: float, alpha: float, seed: int) -> tuple[float, float]:
    """Upper bound of the mean, and p-value of H0: mean >= limit, for values that cannot exceed `worst`.

    The mean is reweighted at random over the values seen and one worst value more. On 0/1 values it is the exact bound
    of Clopper and Pearson.
    """
    negligible = np.abs(differences) <= _NEGLIGIBLE * abs(limit)
    n, rest = differences.size, differences[~negligible]
    # Negligible differences share one weight and their largest value: cautious by less than 1 % of the limit.
    common = float(differences[negligible].max()) if negligible.any() else 0.0
    if rest.size == 0:
        room = worst - common
        share = min(max((limit - common) / room, 0.0), 1.0) if room > 0 else float(limit > common)
        return common + room * -math.expm1(math.log(alpha) / n), (1.0 - share) ** n
    rng = np.random.default_rng([seed, 1])
    pieces = []
    for rows in _blocks(rest.size + 2, alpha):
        weights = rng.standard_exponential((rows, rest.size))
        extra = rng.standard_exponential(rows)
        total = weights @ rest + extra * worst
        mass = weights.sum(axis=1) + extra
        if n > rest.size:
            shared = rng.standard_gamma(n - rest.size, rows)
            total, mass = total + shared * common, mass + shared
        pieces.append(total / mass)
    means = np.sort(np.concatenate(pieces))
    rank = math.floor(alpha * (means.size + 1) + 1e-9)
    p = (1 + means.size - int(np.searchsorted(means, limit, side="left"))) / (means.size + 1)
    return float(means[-rank]), p


def examples_needed(differences: FloatArray, limit: float, span: float, *, alpha: float, power: float) -> int | None:
    """How many examples would prove the mean under `limit` with probability `power`, were the moments the true ones.

    None where the mean is not under the limit. Solves mean + reach / sqrt(n) + lift / n = limit: the bound's expansion.
    """
    gap = limit - float(differences.mean())
    if gap <= 0 or span == 0:
        return None
    spread = float(differences.std())
    few = _few_losses(differences, limit) or spread <= 1e-12 * span
    fewest = FEWEST_EXAMPLES
    if few and gap < span:  # even without a single loss fewer would not do
        fewest = max(fewest, math.ceil(math.log(alpha) / math.log1p(-gap / span)))
    z = float(-special.ndtri(alpha))
    skewness = float(np.mean((differences - differences.mean()) ** 3)) / spread**3 if spread > 0 else 0.0
    reach = (z + float(special.ndtri(power))) * spread
    # Skewness lifts a studentized bound by (2 z^2 + 1) / 6 * skewness * spread / n (P. Hall 1988, Annals of Statistics
    # 16:927-953), the additional worst value lifts Gaffke's by about worst / n.
    lift = max((2 * z * z + 1) / 6 * skewness * spread, span if few else float(differences.max()), 0.0)
    inverse_root = 2 * gap / (reach + math.sqrt(reach * reach + 4 * lift * gap)) if reach + lift > 0 else math.inf
    return max(fewest, math.ceil(1.0 / inverse_root**2))
