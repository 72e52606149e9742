"""Perplexity: against torch's cross entropy, and the paired test of its ratio."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from temper.core.errors import MetricError
from temper.measure.metrics import resolve, settled, value
from temper.measure.paired_pooled import paired_perplexity
from temper.measure.quality import compare

PERPLEXITY = resolve("perplexity")
RNG = np.random.default_rng(0)


def documents(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Logits (count, 12, 9) and targets of documents that are 1 to 12 tokens long."""
    logits = RNG.normal(size=(count, 12, 9)).astype(np.float32)
    targets = RNG.integers(0, 9, (count, 12))
    targets[np.arange(12) >= RNG.integers(1, 13, count)[:, None]] = -100
    return logits, targets


def test_it_is_that_of_all_tokens_together() -> None:
    logits, targets = documents()
    expected = F.cross_entropy(torch.from_numpy(logits).flatten(0, 1), torch.from_numpy(targets).flatten()).exp()
    assert settled(PERPLEXITY, logits, targets, None) is PERPLEXITY
    found = -value(PERPLEXITY, logits, targets, None, np.arange(len(logits)))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_a_document_without_a_counted_token_changes_nothing() -> None:
    logits, targets = documents(4)
    silent = np.full_like(targets[:1], -100)
    both = np.concatenate((logits, logits[:1])), np.concatenate((targets, silent))
    assert value(PERPLEXITY, *both, None, np.arange(5)) == value(PERPLEXITY, logits, targets, None, np.arange(4))


def test_what_it_cannot_score() -> None:
    logits, targets = documents(4)
    with pytest.raises(MetricError, match=r"needs logits .*Shift the tokens by one"):
        PERPLEXITY.score(logits[:, :, 0], targets)
    with pytest.raises(MetricError, match="vocabulary of 9, and found the target 9"):
        PERPLEXITY.score(logits, np.where(targets == 3, 9, targets))
    with pytest.raises(MetricError, match="not nothing"):
        value(PERPLEXITY, logits, np.full_like(targets, -100), None, np.arange(4))


def test_a_limit_of_one_percent_is_one_percent_of_perplexity() -> None:
    """The logits of the candidate lower the probability of every right token alike: 0.5 % and 3 % of perplexity."""
    tokens = RNG.integers(5, 200, 200).astype(float)
    losses = tokens * RNG.normal(1.6, 0.2, 200)
    noise = RNG.normal(0, 0.002, 200) * tokens
    for share, verdict in ((0.005, "ACCEPT"), (0.03, "REJECT"), (-0.02, "ACCEPT")):
        after = np.stack((losses + noise + tokens * np.log1p(share), tokens), 1)
        test = paired_perplexity(np.stack((losses, tokens), 1), after, max_drop=0.01)
        assert test.verdict == verdict
        assert test.drop == pytest.approx(share, abs=2e-3)
        assert test.lower < test.drop < test.upper


def test_the_drop_is_that_of_the_printed_perplexities() -> None:
    logits, targets = documents()
    worse = logits * 0.9
    quality = compare(PERPLEXITY, logits, worse, targets, max_drop=0.01, seed=0)
    everyone = np.arange(len(logits))
    before, after = (-value(PERPLEXITY, each, targets, None, everyone) for each in (logits, worse))
    assert quality.score.value == pytest.approx(after)
    assert quality.score.lower < after < quality.score.upper
    assert quality.drop.value == pytest.approx(after / before - 1)
    assert quality.drop.unit == "1"


def test_equal_answers_prove_the_limit_and_few_documents_prove_nothing() -> None:
    logits, targets = documents(2000)
    assert compare(PERPLEXITY, logits, logits, targets, max_drop=0.01, seed=0).test.verdict == "ACCEPT"
    few = compare(PERPLEXITY, logits[:20], logits[:20], targets[:20], max_drop=0.01, seed=0)
    assert few.test.verdict == "INCONCLUSIVE"
    assert few.drop.upper == np.inf


def test_it_errs_in_at_most_one_of_twenty_cases() -> None:
    """In truth exactly 1 % is lost, by documents of very different length; 300 proofs of 60 documents each."""
    rng, wrong = np.random.default_rng(1), 0
    for seed in range(300):
        tokens = np.ceil(np.exp(rng.normal(5, 0.7, 60)))
        losses = tokens * rng.normal(1.6, 0.3, 60)
        change = tokens * (np.log(1.01) + rng.normal(0, 0.02, 60))
        pair = (np.stack((each, tokens), 1) for each in (losses, losses + change))
        wrong += paired_perplexity(*pair, max_drop=0.01, seed=seed).verdict == "ACCEPT"
    assert wrong <= 23, "5 % of 300, and two standard errors"
