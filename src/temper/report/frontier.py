"""The section of the frontier: its chart, the key to it, and the same in words."""

from temper.report.charts import ASH, IDENTITY, RUST, STEEL, STRAW, Point, points
from temper.report.findings import Findings
from temper.report.markup import Html, section, tag
from temper.report.words import digits_for, plural, recipe_in_words, signed

KEY = (
    ("★", STEEL, "ships"),
    ("◆", STRAW, "baseline: the best float runtime"),
    ("●", STEEL, "on the frontier"),
    ("○", ASH, "other trials"),
    ("╌", RUST, "the limit"),
)


def frontier(findings: Findings) -> Html:
    """The chart, or why there is none."""
    inside, beyond = points(findings)
    if not inside:
        words = "No trial was measured to its end together with a baseline, so there is nothing to draw."
        return section("frontier", "Between safe and bold", tag("p", words))
    intro = (
        "Each mark is one exported model, measured on the selection part, which the search may look at. The line leads "
        "from the baseline to the trials that no other beats in both directions. The candidates for the proof are "
        "those that, within the noise of a single measurement, may be the best. Bars are 95\u00a0% intervals."
    )
    best = "ships" if findings.proof is not None else "best so far"
    shown = [(mark, color, best if words == "ships" else words) for mark, color, words in KEY]
    if findings.best is findings.baseline or findings.best is None:
        shown = [each for each in shown if each[0] != "★"]
    key = (
        tag("li", tag("span", mark, style=f"color:{color}", aria_hidden="true"), f" {words}")
        for mark, color, words in shown
    )
    chart = tag("div", id=IDENTITY, class_="chart", role="img", aria_label=_in_words(findings, inside))
    without = tag("noscript", tag("p", "The chart needs JavaScript; the table of trials below holds the same numbers."))
    axis = tag("p", f"← better · {_axis(findings)}", class_="axis")
    caption = tag("figcaption", tag("ul", *key, class_="key"), _beyond(findings, beyond))
    return section("frontier", "Between safe and bold", tag("p", intro), tag("figure", chart, axis, without, caption))


def _axis(findings: Findings) -> str:
    names = {"latency": "latency relative to the baseline", "size": "size in MB", "memory": "peak memory in MB"}
    return names[findings.goal.minimize]


def _in_words(findings: Findings, inside: list[Point]) -> str:
    """What someone who does not see the chart should know."""
    sentences = [f"Chart of {plural(len(inside), 'trial')}, quality drop against {findings.goal.minimize}."]
    best = "What ships" if findings.proof is not None else "The best so far"
    for name, trial in (("The baseline", findings.baseline), (best, findings.best)):
        point = next((each for each in inside if each.trial is trial), None)
        if point is not None:
            sentences.append(f"{name}, {_position(findings, point)}.")
    return " ".join((*sentences, "The table of trials holds every number."))


def _beyond(findings: Findings, beyond: list[Point]) -> Html | None:
    if not beyond:
        return None
    words = "; ".join(_position(findings, point) for point in beyond)
    return tag("p", f"Beyond the edges of the chart: {words}.", class_="note")


def _position(findings: Findings, point: Point) -> str:
    amount = f"{point.x.value:.2f} × the baseline's latency" if point.x.unit == "1" else f"{point.x.value:.3g} MB"
    drop = signed(point.y.value, digits_for(findings.goal.max_drop))
    return f"trial {point.trial.number} ({recipe_in_words(point.trial.recipe)}) at {amount}, drop {drop}"
