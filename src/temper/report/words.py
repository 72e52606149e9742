"""Numbers, recipes and verdicts in the words and digits that a person reads."""

import math
import re
from collections.abc import Mapping
from typing import Any

from temper.core.knobs import Plug
from temper.core.measurement import Measurement, significant
from temper.core.recipe import Recipe

SHARES = ("accuracy",)
"""Metrics that are shares of the examples, and therefore read in percentage points."""
RELATIVE = ("perplexity",)
"""Metrics whose drops are shares of the original's value, and therefore read in percent of it."""
MISSING = "–"


def signed(number: float, digits: int) -> str:
    """A number with its sign, the typographic minus, and no minus before zero."""
    if not math.isfinite(number):
        return "unbounded"
    text = f"{number:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def digits_for(limit: float) -> int:
    """How many decimals show a drop finely enough to compare it with the limit."""
    return min(max(2, 2 + math.ceil(-math.log10(limit))), 8)


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 trial, 8,000 examples."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def milliseconds(seconds: float) -> str:
    return f"{significant(seconds * 1e3)} ms"


def gigabytes(number: float) -> str:
    return f"{significant(number / 1e9)} GB"


def interval(measurement: Measurement, digits: int) -> str:
    """The interval of a measurement, as `lower to upper`."""
    return f"{measurement.lower:.{digits}f} to {measurement.upper:.{digits}f}".replace("-", "−")


def amount_of(number: float, metric: str, limit: float) -> str:
    """An amount of the metric, as finely as the limit asks for and without its unit."""
    if not math.isfinite(number):
        return "unbounded"
    if metric in (*SHARES, *RELATIVE):
        return f"{number * 100:.{max(0, digits_for(limit) - 2)}f}".replace("-", "−")
    return f"{number:.{digits_for(limit)}f}".replace("-", "−")


def bound_of(limit: float, metric: str) -> str:
    """A limit in units of the metric, as someone would write it by hand: `1` percentage point, or `0.02`."""
    return f"{limit * 100 if metric in (*SHARES, *RELATIVE) else limit:g}"


def unit_of(number: str, metric: str) -> str:
    """What an amount of the metric is counted in: `percentage points of accuracy`, or `of mean cosine`."""
    if metric in RELATIVE:
        return f"% of the {metric}"
    point = "percentage point" if number == "1" else "percentage points"
    return f"{point} of {metric}" if metric in SHARES else f"of {metric}"


def recipe_in_words(recipe: Mapping[str, Any] | Recipe) -> str:
    """What a recipe does: `batch norm fusion, then post training quantization (ranges: mse), on onnxruntime`."""
    known = recipe if isinstance(recipe, Recipe) else Recipe.from_json(recipe)
    steps = [_plug(technique) for technique in known.techniques]
    what = ", then ".join(steps) + "," if steps else "unchanged model"
    return f"{what} on {_plug(known.runtime)}"


def runtime_in_words(recipe: Mapping[str, Any] | Recipe) -> str:
    """What executes a recipe: `openvino (precision: f32)`."""
    known = recipe if isinstance(recipe, Recipe) else Recipe.from_json(recipe)
    return _plug(known.runtime)


def _plug(plug: Plug) -> str:
    """A plug's `family.kind(knob=value)` as `kind family (knob: value)`; `family.aware_kind` as `family-aware kind`."""
    knobs = str(plug).removeprefix(plug.name).strip("()").replace("=", ": ").replace("_", " ")
    family, _, kind = plug.name.rpartition(".")
    aware = kind.startswith("aware_")
    title = (f"{family}-{kind}" if aware else f"{kind} {family}").replace("_", " ").strip()
    return f"{title} ({knobs})" if knobs else title


def percent(share: float, digits: int = 0) -> str:
    """A share as a percentage that no line break tears apart."""
    return f"{share * 100:.{digits}f}\u00a0%"


def typeset(sentence: str) -> str:
    """One of the project's own sentences with a capital, a full stop, true minus signs and unbroken percentages."""
    text = re.sub(r"(\d) ?%", "\\1\u00a0%", sentence)
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."


def faster(ratio: Measurement) -> tuple[str, str]:
    """A latency ratio turned round: (`1.31× faster`, `1.25× to 1.37×`), or slower where it is above 1."""
    if ratio.value <= 1:
        return f"{1 / ratio.value:.2f}× faster", f"{1 / ratio.upper:.2f}× to {1 / ratio.lower:.2f}×"
    return f"{ratio.value:.2f}× slower", f"{ratio.lower:.2f}× to {ratio.upper:.2f}×"


def is_noise(ratio: Measurement) -> bool:
    """Whether a latency ratio cannot be told from 1: its interval holds 1 or reaches into the noise floor."""
    floor: float = ratio.details.get("noise_floor", 0.0)
    return ratio.lower <= 1 + floor and ratio.upper >= 1 - floor


def smaller(mine: float, other: float) -> str:
    """How much less one amount is than the other: `58 % smaller`, or `12 % larger`."""
    change = mine / other - 1
    if abs(change) < 0.005:
        return "the same size"
    return f"{percent(abs(change))} {'smaller' if change < 0 else 'larger'}"
