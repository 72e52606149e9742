"""Is the perplexity worse: a paired test of the ratio of two perplexities, which examples of different length share.

A perplexity is exp(sum of losses / number of tokens) over all examples, so its logarithm is a ratio of two sums, not a
mean over examples. What is resampled or counted is an example (a document), because its tokens resemble each other.

The logarithm of the two perplexities' ratio is R = sum(d) / sum(t), with d the difference of an example's losses and t
its tokens. Its linear part at an example is u = R + (d - R t) / mean(t): these average to R exactly, and their standard
error is that of the ratio estimate to first order. So the bounds of a mean difference apply to u.

Reference: W. G. Cochran (1977), Sampling Techniques, 3rd edition, sec. 6.4 (ratio estimates, their variance).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from temper.measure.statistics import DropTest, mean_interval, paired_drop

Sums = NDArray[np.float64]


def perplexity(sums: Sums) -> float:
    """exp(losses / tokens) of `sums` (n, 2), losses in nats and tokens of each example."""
    losses, tokens = sums.sum(axis=0)
    return float(np.exp(losses / tokens))


def perplexity_interval(sums: Sums) -> tuple[float, float]:
    """Two-sided 95 % interval of the perplexity of `sums` (n, 2), over the examples."""
    lower, upper = mean_interval(_contributions(sums[:, 0], sums[:, 1]))
    return float(np.exp(lower)), float(np.exp(upper))


def paired_perplexity(before: Sums, after: Sums, *, max_drop: float, seed: int = 0) -> DropTest:
    """Can the candidate's perplexity truly exceed the reference's by the share `max_drop` (0.01 is 1 %) or more?

    `before` and `after` hold losses in nats and tokens of each example, (n, 2), of the same examples. Tested is the
    logarithm of the ratio against log(1 + max_drop); drop and bounds are shares again: ratio - 1.

    Raises: ValueError if the two count different tokens, or for what `paired_drop` refuses.
    """
    if not np.array_equal(before[:, 1], after[:, 1]):
        raise ValueError("the two models were scored on different tokens")
    tokens = before[:, 1]
    reference = _contributions(before[:, 0], tokens)
    change = _contributions(after[:, 0] - before[:, 0], tokens)
    # A lower loss is better, so scores are negative losses.
    scores, limit = (-reference, -(reference + change)), float(np.log1p(max_drop))
    test = paired_drop(*scores, max_drop=limit, kind="continuous", seed=seed)
    return replace(
        test,
        drop=float(np.expm1(test.drop)),
        lower=float(np.expm1(test.lower)),
        upper=float(np.expm1(test.upper)),
        max_drop=max_drop,
        disagreements=int(np.sum(before[:, 0] != after[:, 0])),
        method=f"{test.method}, of the logarithm",
    )


def _contributions(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The linear part of sum / count at each example, (n,); their mean is the ratio itself."""
    ratio = sums.sum() / counts.sum()
    contributions: NDArray[np.float64] = ratio + (sums - ratio * counts) / counts.mean()
    return contributions
