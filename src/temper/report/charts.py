"""The chart of the frontier: quality drop against the minimized quantity, for every measured trial."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from temper.core.measurement import Measurement
from temper.core.trial import OBJECTIVES, Trial
from temper.report.findings import Findings
from temper.report.labels import Mark, placed
from temper.report.words import digits_for, interval, recipe_in_words, signed

STEEL, STRAW, ASH, RUST = "#4c7fd0", "#b07d12", "#858b95", "#cc5646"
"""Marks that stand out from light and dark paper alike; text and grid take their colors from the page's style."""
FARTHEST = 3.0
"""A trial beyond this many baselines, or this many limits, would squeeze the others; it is named in words."""
TICKS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 1.75, 2, 2.5, 3)
IDENTITY = "frontier-chart"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial in the plane of the chart."""

    trial: Trial
    x: Measurement
    y: Measurement


def points(findings: Findings) -> tuple[list[Point], list[Point]]:
    """The measured trials that fit into the chart, and those that lie beyond its edges."""
    name, limit = OBJECTIVES[findings.goal.minimize], findings.goal.max_drop
    inside: list[Point] = []
    beyond: list[Point] = []
    for trial in findings.trials:
        x = _x(findings, trial, name)
        if not trial.measured or x is None or findings.baseline is None:
            continue
        point = Point(trial=trial, x=x, y=trial.drop)
        start = _x(findings, findings.baseline, name)
        assert start is not None
        important = trial in (findings.baseline, findings.best)
        fits = x.value <= FARTHEST * start.value and abs(trial.drop.value) <= FARTHEST * limit
        (inside if fits or important else beyond).append(point)
    return inside, beyond


def frontier_chart(findings: Findings) -> str:
    """The script that draws the chart into the element `frontier-chart`, without the library."""
    from plotly import graph_objects

    inside, _ = points(findings)
    figure = graph_objects.Figure(data=_traces(findings, inside), layout=_layout(findings, inside))
    drawn = figure.to_plotly_json()
    parts = [json.dumps(drawn[name], allow_nan=False).replace("<", "\\u003c") for name in ("data", "layout")]
    config = '{"displayModeBar": false, "responsive": true, "scrollZoom": false, "doubleClick": false}'
    return f'Plotly.newPlot("{IDENTITY}", {parts[0]}, {parts[1]}, {config});'


def library() -> str:
    """The text of plotly.js, to be put into the page once."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _x(findings: Findings, trial: Trial, name: str) -> Measurement | None:
    if name == "latency_ratio":
        return findings.relative(trial)
    found = trial.measurements.get(name)
    if found is None:
        return None
    value, lower, upper = (each / 1e6 for each in (found.value, found.lower, found.upper))
    return Measurement(value=value, lower=lower, upper=upper, unit="MB", samples=found.samples)


def _traces(findings: Findings, inside: list[Point]) -> list[dict[str, Any]]:
    start, best, front = findings.baseline, findings.best, findings.frontier
    special = (start, best)
    line = [point for each in front for point in inside if point.trial is each]
    others = [point for point in inside if point.trial not in (*front, *special)]
    middle = [point for point in line if point.trial not in special]
    traces = [
        {
            "x": [point.x.value for point in line],
            "y": [point.y.value for point in line],
            "mode": "lines",
            "line": {"color": STEEL, "width": 1.5},
            "hoverinfo": "skip",
        },
        _marks(findings, others, ASH, "circle-open", 10),
        _marks(findings, middle, STEEL, "circle", 10),
        _marks(findings, [point for point in inside if point.trial is start], STRAW, "diamond", 14),
    ]
    if best is not start:
        traces.append(_marks(findings, [point for point in inside if point.trial is best], STEEL, "star", 18))
    return traces


def _marks(findings: Findings, chosen: list[Point], color: str, symbol: str, size: int) -> dict[str, Any]:
    def error(measurements: list[Measurement]) -> dict[str, Any]:
        return {
            "type": "data",
            "symmetric": False,
            "array": [_reach(each.upper - each.value) for each in measurements],
            "arrayminus": [_reach(each.value - each.lower) for each in measurements],
            "color": color,
            "thickness": 1,
            "width": 3,
        }

    return {
        "x": [point.x.value for point in chosen],
        "y": [point.y.value for point in chosen],
        "error_x": error([point.x for point in chosen]),
        "error_y": error([point.y for point in chosen]),
        "mode": "markers",
        "marker": {"color": color, "symbol": symbol, "size": size, "line": {"width": 1.75, "color": color}},
        "hovertext": [_hover(findings, point) for point in chosen],
        "hoverinfo": "text",
    }


def _reach(length: float) -> float:
    """The length of one arm of an error bar; what is unbounded leaves the chart."""
    return max(length, 0.0) if math.isfinite(length) else 1e3


def _hover(findings: Findings, point: Point) -> str:
    digits = digits_for(findings.goal.max_drop)
    amount = f"{point.x.value:.3f} × the baseline's latency" if point.x.unit == "1" else f"{point.x.value:.3f} MB"
    lines = (
        f"trial {point.trial.number}",
        *_wrapped(recipe_in_words(point.trial.recipe)),
        f"{amount} ({interval(point.x, 3)})",
        f"drop {signed(point.y.value, digits)} ({signed(point.y.lower, digits)} to {signed(point.y.upper, digits)})",
    )
    return "<br>".join(map(escape, lines))


def _wrapped(words: str, width: int = 44) -> list[str]:
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _layout(findings: Findings, inside: list[Point]) -> dict[str, Any]:
    limit = findings.goal.max_drop
    logarithmic = findings.goal.minimize == "latency"
    x_range, y_range = _x_range(inside, logarithmic), _y_range(inside, limit)
    axis = {"fixedrange": True, "zeroline": False, "ticks": "", "gridcolor": ASH, "gridwidth": 1, "automargin": True}
    ticks = {"type": "log", "tickvals": _ticks(x_range), "ticktext": [f"{each:g}" for each in _ticks(x_range)]}
    return {
        "template": "none",
        "autosize": True,
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": ASH},
        "margin": {"l": 8, "r": 12, "t": 30, "b": 8},
        "xaxis": {
            **axis, "range": x_range, "showgrid": False,
            **(ticks if logarithmic else {"nticks": 6}),
        },
        "yaxis": {**axis, "range": y_range, "nticks": 7, "tickformat": "~f"},
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit,
             "line": {"color": RUST, "width": 1.5, "dash": "6px,4px"}},
        ],
        "annotations": [*_titles(findings, limit), *_labels(findings, inside, x_range, y_range, logarithmic)],
    }  # fmt: skip


def _x_range(inside: list[Point], logarithmic: bool) -> list[float]:
    """The range of the x axis, wide enough for the points and most of their intervals."""
    low, high = min(point.x.value for point in inside), max(point.x.value for point in inside)
    low = min(low, max(low * 0.85, min(point.x.lower for point in inside)))
    high = max(high, min(high * 1.15, max(point.x.upper for point in inside)))
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    pad = max(0.12 * (high - low), 0.04 if logarithmic else 0.05 * high)
    return [low - pad, high + pad]


def _y_range(inside: list[Point], limit: float) -> list[float]:
    far = FARTHEST * limit
    low = min(min(point.y.value, max(point.y.lower, -limit)) for point in inside)
    high = max(max(point.y.value, min(point.y.upper, far)) for point in inside)
    low, high = min(low, -0.4 * limit), max(high, limit)
    pad = 0.08 * (high - low)
    return [low - pad, high + pad]


def _ticks(x_range: list[float]) -> list[float]:
    """Round ratios inside the range, spaced so that their labels keep apart on a narrow screen."""
    least = (x_range[1] - x_range[0]) / 9
    kept = [1.0] if x_range[0] <= 0 <= x_range[1] else []
    for tick in TICKS:
        at = math.log10(tick)
        if x_range[0] <= at <= x_range[1] and all(abs(at - math.log10(other)) >= least for other in kept):
            kept.append(tick)
    return sorted(kept)


def _titles(findings: Findings, limit: float) -> list[dict[str, Any]]:
    """The title of the y axis, upright above it, and the label of the limit."""
    plain = {"showarrow": False, "xref": "paper"}
    name = escape(findings.metric)
    return [
        {**plain, "text": f"drop in {name}, ↓ better", "x": 0, "xanchor": "left", "yref": "paper", "y": 1,
         "yanchor": "bottom", "yshift": 8},
        {**plain, "text": f"limit {limit:g}", "x": 1, "xanchor": "right", "y": limit, "yanchor": "bottom", "yshift": 2,
         "font": {"color": RUST, "size": 13}},
    ]  # fmt: skip


def _labels(
    findings: Findings, inside: list[Point], x_range: list[float], y_range: list[float], logarithmic: bool
) -> list[dict[str, Any]]:
    """Names beside the baseline and what ships."""
    ships = "ships" if findings.proof is not None else "best so far"
    named = [(findings.baseline, "baseline"), (findings.best, ships)]
    if findings.best is findings.baseline:
        named = [(findings.baseline, f"baseline, {ships}")]
    numbers = {point.trial.number: index for index, point in enumerate(inside)}
    wanted = [(numbers[trial.number], text) for trial, text in named if trial is not None and trial.number in numbers]

    def along(x: float, y: float) -> tuple[float, float]:
        return _share(math.log10(x) if logarithmic else x, x_range), 1 - _share(y, y_range)

    marks = [_mark(point, along) for point in inside]
    front = [along(p.x.value, p.y.value) for each in findings.frontier for p in inside if p.trial is each]
    level = along(inside[0].x.value, findings.goal.max_drop)[1]
    lines = [place for ends in pairwise(front) for place in _between(*ends)] + _between((0.0, level), (1.0, level))
    labels = []
    for (index, text), (dx, dy) in zip(wanted, placed(wanted, marks, lines)):
        x = inside[index].x.value
        labels.append(
            {"text": f"<b>{text}</b>", "x": math.log10(x) if logarithmic else x, "y": inside[index].y.value,
             "ax": dx, "ay": dy, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": ASH, "font": {"size": 14},
             "standoff": 9, "borderpad": 2}
        )  # fmt: skip
    return labels


def _mark(point: Point, along: Callable[[float, float], tuple[float, float]]) -> Mark:
    left, top = along(point.x.lower, min(point.y.upper, 1e3))
    right, bottom = along(point.x.upper, max(point.y.lower, -1e3))
    return Mark(at=along(point.x.value, point.y.value), left=left, right=right, top=top, bottom=bottom)


def _share(place: float, ends: list[float]) -> float:
    return (place - ends[0]) / (ends[1] - ends[0])


def _between(start: tuple[float, float], end: tuple[float, float], count: int = 20) -> list[tuple[float, float]]:
    """Places along a line."""
    return [
        (start[0] + (end[0] - start[0]) * step / count, start[1] + (end[1] - start[1]) * step / count)
        for step in range(count + 1)
    ]
