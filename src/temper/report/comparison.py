"""The measurements of the proof side by side, and the verdict on every limit."""

import math

from temper.core.goal import Goal
from temper.core.measurement import Measurement, megabytes, significant
from temper.core.proof import Judgement, Proof, Row
from temper.report.findings import Findings
from temper.report.markup import Column, Html, badge, joined, section, table, tag, value
from temper.report.words import (
    MISSING,
    bound_of,
    digits_for,
    interval,
    milliseconds,
    percent,
    plural,
    recipe_in_words,
    signed,
    typeset,
    unit_of,
)

ROLES = {"eager": "PyTorch eager", "baseline": "Best float runtime", "chosen": "What ships"}
COUNTED = {"size_bytes": "Size", "memory_bytes": "Peak memory", "latency_s": "Latency, p50", "energy_j": "Energy"}


def comparison(findings: Findings) -> Html:
    """Eager PyTorch, the best float runtime and what ships, as measured for the proof; then every limit."""
    proof = findings.proof
    if proof is None:
        words = (
            "This run has no proof, so its measurements are missing. What the search saw on the "
            "selection part stands below; it shows a direction and proves nothing."
        )
        return section("measured", "What was measured", tag("p", words))
    words = (
        f"All were reloaded from their exported files in clean processes and timed in turns on the same cores, "
        f"with {findings.conditions}. {_noise(proof)}"
        "Small numbers are 95\u00a0% intervals, and for peak memory the range of the runs."
    )
    shown = [row for row in proof.rows if row.role != "chosen" or not findings.baseline_ships]
    rows = [_row(row, proof, ships=findings.baseline_ships and row.role == "baseline") for row in shown]
    columns = [Column(title="Contestant")] + [
        Column(title=title, numeric=True)
        for title in (
            proof.metric.capitalize(), "Drop", "p50", "p90", "p99", "Latency ratio", "Size", "Peak memory"
        )
    ]  # fmt: skip
    winner = "baseline" if findings.baseline_ships else "chosen"
    marks = ["best" if row.role == winner else "" for row in shown]
    caption = f"Measured on {plural(proof.examples, 'example')} of the proof part"
    return section(
        "measured",
        "What was measured",
        tag("p", words),
        table(caption, columns, rows, classes="cards comparison", marks=marks),
        tag("p", _energy(proof), class_="note"),
        tag("h3", "The limits"),
        tag("ul", *(_judgement(each, proof) for each in proof.judgements), class_="judgements"),
    )


def _row(row: Row, proof: Proof, *, ships: bool) -> list[str]:
    measured, digits = row.measurements, digits_for(proof.goal.max_drop)
    title = f"{ROLES[row.role]}, which ships" if ships else ROLES.get(row.role, row.role)
    drop, ratio, latency, memory = (measured[name] for name in ("drop", "latency_ratio", "latency_s", "memory_bytes"))
    bound = f"at most {signed(drop.upper, digits)}" if math.isfinite(drop.upper) else "no bound"
    spread = f"{significant(latency.lower * 1e3)} to {significant(latency.upper * 1e3)}"
    is_unit = row.role == "baseline"
    return [
        value(title, recipe_in_words(row.recipe)),
        value(f"{measured['score'].value:.{digits}f}", interval(measured["score"], digits)),
        value(signed(drop.value, digits), bound),
        value(milliseconds(latency.details.get("p50", latency.value)), spread),
        *(_percentile(latency, name) for name in ("p90", "p99")),
        value("1", "by definition") if is_unit else value(f"{ratio.value:.3f}", interval(ratio, 3)),
        value(megabytes(measured["size_bytes"].value), "counted"),
        value(
            megabytes(memory.value),
            f"{significant(memory.lower / 1e6)} to {significant(memory.upper / 1e6)}",
        ),
    ]


def _percentile(latency: Measurement, name: str) -> Html:
    seconds = latency.details.get(name)
    return value(MISSING if seconds is None else milliseconds(seconds))


def _noise(proof: Proof) -> str:
    floor = proof.row("chosen").measurements["latency_ratio"].details.get("noise_floor")
    return "" if floor is None else f"Differences in latency under {percent(floor, 1)} are noise. "


def _energy(proof: Proof) -> str:
    energies = [(row, row.measurements["energy_j"]) for row in proof.rows if "energy_j" in row.measurements]
    if all(each.status == "unavailable" for _, each in energies):
        return "Energy: unavailable (this host exposes no energy counters)."
    words = (
        f"{ROLES.get(row.role, row.role).lower()} {significant(each.value)} {each.unit} ({each.status})"
        for row, each in energies
    )
    return f"Energy: {'; '.join(words)}."


def _judgement(judgement: Judgement, proof: Proof) -> Html:
    return tag(
        "li",
        badge(judgement.verdict.value),
        tag("div", tag("b", _limit(judgement, proof.goal, proof.metric)), tag("p", typeset(judgement.reason))),
    )


def _limit(judgement: Judgement, goal: Goal, metric: str) -> Html:
    """What must hold, in words."""
    name, bound = judgement.limit, judgement.bound
    if name == "drop":
        amount = bound_of(bound, metric)
        return joined((f"Loses less than {amount} {unit_of(amount, metric)}",))
    if goal.limits.get(name) == bound:
        amount = milliseconds(bound) if name == "latency_s" else megabytes(bound)
        return joined((f"{COUNTED.get(name, name)} under {amount}",))
    better = {"latency_ratio": "Faster", "size_bytes": "Smaller", "memory_bytes": "Needs less memory"}
    return joined((f"{better.get(name, name)} than the best float runtime",))
