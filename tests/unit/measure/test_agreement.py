"""Agreement: the share of the original's variation that is reproduced, whatever the scale of an output."""

import numpy as np
import pytest

from temper.core.errors import MetricError
from temper.measure.agreement import agreement
from temper.measure.metrics import resolve, scores

RNG = np.random.default_rng(0)
ORIGINAL = RNG.normal(size=(200, 5)).astype(np.float32)


def test_it_is_the_coefficient_of_determination() -> None:
    noisy = ORIGINAL + 0.1 * RNG.normal(size=ORIGINAL.shape).astype(np.float32)
    residual = ((noisy - ORIGINAL) ** 2).sum()
    total = ((ORIGINAL - ORIGINAL.mean(0)) ** 2).sum()
    assert agreement(noisy, ORIGINAL).mean() == pytest.approx(1 - residual / total, rel=1e-5)
    assert (agreement(ORIGINAL, ORIGINAL) == 1).all()
    constant = np.broadcast_to(ORIGINAL.mean(0), ORIGINAL.shape)
    assert agreement(constant, ORIGINAL).mean() == pytest.approx(0, abs=1e-6)


def test_outputs_weigh_alike_and_an_offset_hides_nothing() -> None:
    wrong = ORIGINAL[::-1]
    both = agreement((1e6 * ORIGINAL, wrong), (1e6 * ORIGINAL, ORIGINAL)).mean()
    assert both == pytest.approx((1 + agreement(wrong, ORIGINAL).mean()) / 2)
    assert agreement(wrong + 100, ORIGINAL + 100).mean() == pytest.approx(agreement(wrong, ORIGINAL).mean(), rel=1e-3)
    assert scores(resolve("cosine"), wrong + 100, None, ORIGINAL + 100).mean() > 0.999


def test_integers_and_constant_outputs_count_where_they_are_equal() -> None:
    classes = np.arange(4)
    assert agreement(np.array([0, 1, 2, 0]), classes).tolist() == [1, 1, 1, 0]
    assert agreement(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)).tolist() == [1, 1]


def test_padding_is_no_variation() -> None:
    """Outputs of different lengths that hardly vary beside their mean: a constant answer is worth nothing."""
    lengths = RNG.integers(1, 9, 200)
    padding = np.arange(8) >= lengths[:, None]
    exact = np.ma.masked_array(np.where(padding, 0, 100 + RNG.normal(size=(200, 8))).astype(np.float32), padding)
    constant = np.where(padding, 0, exact.mean(axis=0).filled(0)).astype(np.float32)
    assert agreement(constant, exact).mean() == pytest.approx(0, abs=1e-4)
    assert agreement(constant, exact.data).mean() > 0.9, "with the padding as values it would look right"
    assert agreement(exact.data, exact).tolist() == [1.0] * 200
    part = lengths > 3
    assert agreement(constant[part], exact[part]).mean() < 0.1
    assert scores(resolve("agreement"), constant, None, exact).mean() == pytest.approx(0, abs=1e-4)
    cosine = resolve("cosine")
    assert (scores(cosine, constant, None, exact) == scores(cosine, constant, None, exact.data)).all()
    integers = np.ma.masked_array(np.array([[1, 2], [3, 0]]), [[False, False], [False, True]])
    assert agreement(np.array([[1, 0], [3, 0]]), integers).tolist() == [0, 1]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(MetricError, match="cannot be compared"):
        agreement(ORIGINAL[:, :2], ORIGINAL)
