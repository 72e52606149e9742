import math

import pytest

from temper.core.measurement import Measurement, significant
from temper.core.recipe import Recipe
from temper.report.markup import tag
from temper.report.words import amount_of, digits_for, faster, is_noise, recipe_in_words, signed, smaller, typeset


def ratio(value: float, lower: float, upper: float, floor: float = 0.0) -> Measurement:
    return Measurement(value=value, lower=lower, upper=upper, unit="1", samples=9, details={"noise_floor": floor})


@pytest.mark.parametrize(
    ("number", "text"), [(-0.00061, "−0.0006"), (0.002, "+0.0020"), (-1e-9, "0.0000"), (math.inf, "unbounded")]
)
def test_signed(number: float, text: str) -> None:
    assert signed(number, 4) == text


@pytest.mark.parametrize(("number", "text"), [(0.4947, "0.495"), (12.34, "12.3"), (1234.5, "1,234"), (0, "0")])
def test_significant(number: float, text: str) -> None:
    assert significant(number) == text


@pytest.mark.parametrize(("limit", "digits"), [(0.01, 4), (0.001, 5), (0.05, 4), (1.0, 2), (20.0, 2)])
def test_digits_follow_the_limit(limit: float, digits: int) -> None:
    assert digits_for(limit) == digits


def test_ratios_are_told_as_factors() -> None:
    assert faster(ratio(0.765, 0.728, 0.801)) == ("1.31× faster", "1.25× to 1.37×")
    assert faster(ratio(1.5, 1.4, 1.6)) == ("1.50× slower", "1.40× to 1.60×")
    assert is_noise(ratio(0.97, 0.95, 0.985, floor=0.03))
    assert not is_noise(ratio(0.8, 0.75, 0.85, floor=0.03))
    assert smaller(42, 100) == "58\u00a0% smaller"


def test_amounts_of_shares_are_points() -> None:
    assert amount_of(0.0024, "accuracy", 0.01) == "0.24"
    assert amount_of(0.0024, "cosine", 0.01) == "0.0024"


def test_recipes_in_words() -> None:
    bare = Recipe.from_json({"techniques": [], "runtime": {"name": "torch_eager"}})
    assert recipe_in_words(bare) == "unchanged model on torch eager"
    tuned = {"techniques": [{"name": "quantization.post_training", "ranges": "mse", "float_layers": 2}]}
    words = recipe_in_words({**tuned, "runtime": {"name": "onnxruntime"}})
    assert words == "post training quantization (ranges: mse, float layers: 2), on onnxruntime"
    trained = {"techniques": [{"name": "quantization.aware_training", "weight_bits": 4}]}
    words = recipe_in_words({**trained, "runtime": {"name": "onnxruntime"}})
    assert words == "quantization-aware training (weight bits: 4), on onnxruntime"


def test_typesetting() -> None:
    assert typeset("drop -0.0006 at 95 % and 3.7%") == "Drop −0.0006 at 95\u00a0% and 3.7\u00a0%."


def test_markup_escapes_all_that_is_not_markup() -> None:
    inner = tag("b", "a < b")
    assert tag("p", inner, " & c", title='"') == '<p title="&quot;"><b>a &lt; b</b> &amp; c</p>'
