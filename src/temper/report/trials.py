"""Everything that was tried, with what it cost and why it went no further."""

import math

from temper.core.measurement import Measurement, megabytes, significant
from temper.core.trial import Trial
from temper.report.findings import Findings
from temper.report.markup import Column, Html, folded, joined, section, table, tag, value
from temper.report.words import MISSING, digits_for, interval, plural, recipe_in_words, signed

OVER = {"drop": "drop", "latency_s": "latency", "size_bytes": "size", "memory_bytes": "peak memory"}
NOTES = (
    "Latency is relative to the best float runtime; its interval is that of the ratio to the best one at the time, "
    "beside which each was timed. Drop is the loss against your original model on the selection part. Operators are "
    "counted by the runtime's own account of what it executes."
)
MARKS = {
    "ships": "best",
    "baseline, ships": "best",
    "best so far": "best",
    "failed": "lost",
    "dropped": "lost",
    "interrupted": "lost",
}


def trials(findings: Findings) -> Html:
    """One row for each trial, in the order in which they were made."""
    unfinished = _unfinished(findings)
    if not findings.trials:
        return section("trials", "What was tried", tag("p", "No trial was ended."), unfinished)
    outcomes = [_place(findings, trial) for trial in findings.trials]
    seconds = sum(trial.cost_s for trial in findings.trials)
    columns = [
        Column(title="Trial", numeric=True),
        Column(title="Recipe"),
        Column(title="Outcome"),
        Column(title="Latency ratio", numeric=True),
        Column(title="Drop", numeric=True),
        Column(title="Size", numeric=True),
        *([Column(title="Peak memory", numeric=True)] if _has_memory(findings) else []),
        Column(title="Operators run"),
        Column(title="Cost", numeric=True),
    ]
    words = f"{plural(len(findings.trials), 'trial')} in {_duration(seconds)}. {NOTES}"
    rows = [_row(findings, trial, place) for trial, place in zip(findings.trials, outcomes)]
    marks = [MARKS.get(place, "") for place in outcomes]
    made = table("All trials, by number", columns, rows, classes="cards trials", marks=marks)
    return section("trials", "What was tried", tag("p", words), made, unfinished)


def _has_memory(findings: Findings) -> bool:
    return any("memory_bytes" in trial.measurements for trial in findings.trials)


def _row(findings: Findings, trial: Trial, place: str) -> list[str]:
    ratio, drop = findings.relative(trial), trial.measurements.get("drop")
    size, memory = trial.measurements.get("size_bytes"), trial.measurements.get("memory_bytes")
    digits = digits_for(findings.goal.max_drop)
    reason = trial.reason or _over(findings, trial)
    recipe = tag("span", recipe_in_words(trial.recipe), class_="recipe")
    return [
        str(trial.number),
        recipe if not reason else joined((recipe, folded(reason))),
        tag("span", place, class_=f"place place-{place.split()[-1]}"),
        MISSING if ratio is None else value(f"{ratio.value:.3f}", interval(ratio, 3)),
        MISSING if drop is None else value(signed(drop.value, digits), _bound(drop, digits)),
        _bytes(size),
        *([_bytes(memory)] if _has_memory(findings) else []),
        _executed(trial),
        _duration(trial.cost_s),
    ]


def _bound(drop: Measurement, digits: int) -> str:
    return f"at most {signed(drop.upper, digits)}" if math.isfinite(drop.upper) else "no bound"


def _bytes(amount: Measurement | None) -> str:
    return MISSING if amount is None else megabytes(amount.value)


def _place(findings: Findings, trial: Trial) -> str:
    """The outcome in a word or two."""
    if not trial.measured:
        return trial.outcome
    if trial is findings.best and findings.proof is not None:
        return "baseline, ships" if trial is findings.baseline else "ships"
    if trial is findings.baseline:
        return "baseline"
    if trial is findings.best:
        return "best so far"
    if trial in findings.frontier:
        return "on the frontier"
    return "behind the frontier" if trial.within(findings.goal) else "outside of the limits"


def _over(findings: Findings, trial: Trial) -> str:
    """Which limits a measured trial breaks on the selection part."""
    if not trial.measured or trial is findings.baseline:
        return ""
    limits = {"drop": findings.goal.max_drop, **findings.goal.limits}
    over = [OVER.get(name, name) for name, limit in limits.items() if trial.measurements[name].value > limit]
    return f"over the limit in {' and '.join(over)}" if over else ""


def _executed(trial: Trial) -> str:
    counts = sorted(trial.executed.items(), key=lambda each: -each[1])
    return ", ".join(f"{count}\u00a0{precision}" for precision, count in counts) or MISSING


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{significant(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest} s"


def _unfinished(findings: Findings) -> Html | None:
    if not findings.unfinished:
        return None
    names = "; ".join(f"trial {number} ({recipe_in_words(recipe)})" for number, recipe in findings.unfinished)
    return tag("p", f"Begun and not ended when the run stopped: {names}.", class_="note")
