"""What ships, layer by layer: where its time goes, what executes it, and what its quantizers lose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from temper.core.explanation import Advice, Explanation, Layer, Quantized
from temper.core.measurement import significant
from temper.report.findings import Findings
from temper.report.markup import Column, Html, joined, section, table, tag, value
from temper.report.words import MISSING, milliseconds

LEAST_SENSITIVITY = 1e-9
"""Sensitivities span many powers of ten: their bars are logarithmic, and begin here."""
NOTES = (
    "Shares of the time are from the runtime's own profile; an operator that computes several of the model's counts "
    "for its layer. Sensitivity is the share of the outputs' mean square that is lost when that layer alone is "
    "quantized, on calibration inputs; its bars are logarithmic. Errors are mean squared, relative to the values."
)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Seconds of all operators together, and of the row that takes most."""

    whole: float
    slowest: float

    @classmethod
    def of(cls, explanation: Explanation) -> Self:
        layers = [layer.seconds or 0.0 for layer in explanation.layers]
        others = [sum(kernel.seconds for kernel in kernels) for kernels in explanation.others().values()]
        whole = sum(kernel.seconds for kernel in explanation.kernels)
        return cls(whole=whole, slowest=max((*layers, *others), default=0.0))


def anatomy(findings: Findings) -> Html | None:
    """Time, precision and quantization of every layer, and what hurts."""
    noted = findings.facts.get("explanation")
    if noted is None:
        return None
    explanation = Explanation.from_json(noted)
    clock = Clock.of(explanation)
    call = f"One call takes {milliseconds(explanation.call_s)}. {NOTES if explanation.layers else ''}"
    if explanation.untimed:
        call = f"{call} There are no shares of the time: {explanation.untimed}."
    rows = [*_layers(explanation.layers, clock), *_others(explanation, clock)]
    columns = [
        Column(title="Layer"),
        Column(title="Time"),
        Column(title="Precision"),
        Column(title="Sensitivity"),
        Column(title="Weights", numeric=True),
        Column(title="Inputs", numeric=True),
        Column(title="Scale of inputs", numeric=True),
    ]
    drawn = table("The layers of what ships, in order", columns, rows, classes="cards anatomy") if rows else None
    return section("anatomy", "What it is made of", tag("p", call), _advice(explanation.advice), drawn)


def _advice(advice: Sequence[Advice]) -> Html:
    if not advice:
        return tag("p", "Nothing stands out that would be worth changing.")
    said = (
        tag("li", tag("strong", f"{each.hurts.capitalize()}, {each.share:.0%}: "), f"{each.what}. {_remedy(each)}.")
        for each in advice
    )
    return tag("ul", *said)


def _remedy(advice: Advice) -> str:
    return advice.remedy[:1].upper() + advice.remedy[1:]


def _layers(layers: Sequence[Layer], clock: Clock) -> list[list[str]]:
    rows = []
    for layer in layers:
        shape = " × ".join(map(str, layer.shape))
        rows.append(
            [
                value(layer.name, f"{layer.operator} {shape}"),
                _time(layer.seconds, clock, layer.precision or ""),
                layer.precision or MISSING,
                _sensitivity(layer.sensitivity),
                _quantized(layer.weight),
                _quantized(layer.input),
                MISSING if layer.input is None else f"{layer.input.scale_factor[1]:.2g}",
            ]
        )
    return rows


def _others(explanation: Explanation, clock: Clock) -> list[list[str]]:
    """One row for each kind of operator that computes no layer, the slowest first."""
    rows = []
    for operator, kernels in explanation.others().items():
        precisions = sorted({kernel.precision for kernel in kernels})
        time = _time(sum(kernel.seconds for kernel in kernels), clock, precisions[0])
        rows.append([f"{len(kernels)} × {operator}", time, ", ".join(precisions), *[MISSING] * 4])
    return rows


def _time(seconds: float | None, clock: Clock, precision: str) -> str:
    """A bar that is full for the slowest row, with the share of the whole."""
    if seconds is None or not clock.whole:
        return MISSING
    kind = "integer" if precision.startswith("int") else "float"
    return _bar(seconds / clock.slowest, f"{seconds / clock.whole:.1%}", kind)


def _bar(length: float, label: str, kind: str) -> str:
    filled = tag("span", class_=f"fill {kind}", style=f"width: {100 * min(max(length, 0.0), 1.0):.1f}%")
    return joined((tag("span", filled, class_="bar", aria_hidden="true"), tag("span", label, class_="amount")))


def _sensitivity(share: float | None) -> str:
    if share is None:
        return MISSING
    length = math.log10(max(share, LEAST_SENSITIVITY) / LEAST_SENSITIVITY) / -math.log10(LEAST_SENSITIVITY)
    return _bar(length, _power(share), "sensitivity")


def _power(number: float) -> str:
    if number <= 0:
        return "0"
    exponent = math.floor(math.log10(number))
    return f"{number / 10**exponent:.1f}e{exponent}".replace("-", "−")


def _quantized(quantized: Quantized | None) -> str:
    if quantized is None:
        return MISSING
    low, high = quantized.original_range
    ends = f"{significant(low, 2)} to {significant(high, 2)}"
    return value(ends, f"{quantized.bits} bits, error {_power(quantized.relative_error)}")
