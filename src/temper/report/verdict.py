"""The verdict: what ships, how much better it is and how sure that is, in a sentence that anyone understands."""

import math
from collections.abc import Callable

from temper.core.measurement import Measurement, megabytes
from temper.core.proof import Proof, Row, Verdict
from temper.core.trial import OBJECTIVES
from temper.report.findings import Findings
from temper.report.markup import Html, badge, joined, tag
from temper.report.words import (
    RELATIVE,
    SHARES,
    amount_of,
    bound_of,
    faster,
    is_noise,
    milliseconds,
    percent,
    plural,
    recipe_in_words,
    runtime_in_words,
    smaller,
    typeset,
    unit_of,
)


def verdict(findings: Findings) -> Html:
    """The head of the page: the verdict as a label, the sentence, and the figures that it rests on."""
    proof = findings.proof
    rest: list[Html | None]
    if proof is None:
        label, sentence, rest = "NO PROOF", _unproven(findings), [_resume(findings)]
    elif findings.baseline_ships:
        label, sentence = proof.verdict.value, _own_model(proof)
        rest = [tag("p", *map(typeset, proof.notes[:1]), class_="why"), _figures(proof)]
    else:
        label, sentence = proof.verdict.value, _gain(proof)
        rest = [_shipped(proof), _figures(proof)]
    return tag(
        "section",
        tag("h2", "Verdict", id="verdict", class_="unseen"),
        tag("p", badge(label), class_="stamp"),
        tag("p", sentence, class_="verdict"),
        *rest,
        aria_labelledby="verdict",
    )


def _gain(proof: Proof) -> Html:
    baseline, chosen = proof.row("baseline"), proof.row("chosen")
    speed, size, memory = _speed(chosen), _size(chosen, baseline), _memory(chosen, baseline)
    first, second = {"size": (size, speed), "memory": (memory, speed)}.get(proof.goal.minimize, (speed, size))
    bar = f" than your own model on its best float runtime here, {runtime_in_words(baseline.recipe)}; it "
    return joined(
        ("The optimized model ", first, bar, second, " and ", *_loss(proof, chosen.measurements["drop"]), ".")
    )


def _speed(chosen: Row) -> Html:
    ratio = chosen.measurements["latency_ratio"]
    times, span = faster(ratio)
    if is_noise(ratio):
        return joined(
            ("runs ", tag("strong", "equally fast"), f", as far as noise lets one see (ratio {ratio.value:.2f}),")
        )
    return joined(("runs ", tag("strong", times), f" ({span})"))


def _size(chosen: Row, baseline: Row) -> Html:
    mine, other = (row.measurements["size_bytes"].value for row in (chosen, baseline))
    return joined(("is ", tag("strong", smaller(mine, other))))


def _memory(chosen: Row, baseline: Row) -> Html:
    mine, other = (row.measurements["memory_bytes"].value for row in (chosen, baseline))
    return joined(("needs ", tag("strong", f"{percent(abs(1 - mine / other))} {_less(mine, other)} memory")))


def _less(mine: float, other: float) -> str:
    return "less" if mine <= other else "more"


def _loss(proof: Proof, drop: Measurement) -> tuple[str, ...]:
    """What was lost, at most, and on how many examples."""
    metric, limit = proof.metric, proof.goal.max_drop
    most = amount_of(drop.upper, metric, limit)
    if drop.value <= 0:
        lost, unit = f"lost no {metric}", f" {unit_of(most, metric)}"
    else:
        amount = amount_of(drop.value, metric, limit)
        lost, unit = f"lost {amount} {unit_of(amount, metric)}", ""
    bound = f", at most {most}{unit} with {percent(drop.confidence)} confidence,"
    if not math.isfinite(drop.upper):
        bound = ", though these examples cannot bound the loss,"
    elif drop.upper <= 0:
        bound = f", with {percent(drop.confidence)} confidence,"
    doubt = "" if proof.verdict is Verdict.ACCEPT else "; not every limit is proven"
    return tag("strong", lost), f"{bound} on {proof.examples:,} examples that the search never saw{doubt}"


def _own_model(proof: Proof) -> Html:
    row = proof.row("chosen")
    eager = next((each.measurements["latency_ratio"] for each in proof.rows if each.role == "eager"), None)
    against = ""
    if eager is not None and eager.value > 1 and not is_noise(eager):
        against = f", {eager.value:.2f}× as fast as in PyTorch eager"
    where = f", on its best float runtime here, {runtime_in_words(row.recipe)}{against}; it "
    return joined(
        (tag("strong", "Your own model ships unchanged"), where, *_loss(proof, row.measurements["drop"]), ".")
    )


def _shipped(proof: Proof) -> Html:
    reasons = (f" {typeset(note)}" for note in proof.notes[:1])
    return tag("p", tag("b", "What ships: "), f"{recipe_in_words(proof.row('chosen').recipe)}.", *reasons, class_="why")


def _figures(proof: Proof) -> Html:
    """The few numbers that matter, side by side."""
    baseline, chosen = proof.row("baseline").measurements, proof.row("chosen").measurements
    limit, metric = proof.goal.max_drop, proof.metric
    unit = " pp" if metric in SHARES else " %" if metric in RELATIVE else ""
    most = amount_of(chosen["drop"].upper, metric, limit)
    floats = {
        name: None if baseline == chosen else baseline[name].value
        for name in ("latency_s", "size_bytes", "memory_bytes")
    }
    figures = (
        ("Latency, p50", milliseconds(chosen["latency_s"].value), _against(floats["latency_s"], milliseconds)),
        ("Size", megabytes(chosen["size_bytes"].value), _against(floats["size_bytes"], megabytes)),
        ("Peak memory", megabytes(chosen["memory_bytes"].value), _against(floats["memory_bytes"], megabytes)),
        (
            f"Lost {metric}, at most",
            most if most == "unbounded" else f"{most}{unit}",
            f"limit: {bound_of(limit, metric)}{unit}",
        ),
        ("Unseen examples", f"{proof.examples:,}", "in the proof part"),
    )
    return tag("dl", *(_figure(*each) for each in figures), class_="figures")


def _against(other: float | None, words: Callable[[float], str]) -> str | None:
    return None if other is None else f"best float: {words(other)}"


def _figure(title: str, number: str, note: str | None) -> Html:
    return tag("div", tag("dt", title), tag("dd", number), note and tag("dd", note, class_="note"))


def _unproven(findings: Findings) -> Html:
    tried = plural(len(findings.trials), "trial")
    start, best = findings.baseline, findings.best
    if start is None or best is None:
        words = (
            f"This run stopped before it had a proof: {tried} ended and none was measured, so nothing can be claimed."
        )
        return joined((words,))
    opening = f"This run stopped before it had a proof, so nothing is proven: it made {tried} and "
    if best is start:
        return joined((opening, f"found nothing better than your own model on {runtime_in_words(best.recipe)}."))
    return joined(
        (
            f"{opening}its best candidate so far ",
            *_candidate(findings),
            " than your own model on its best float runtime, as the selection part shows it.",
        )
    )


def _candidate(findings: Findings) -> tuple[str, ...]:
    assert findings.best is not None
    assert findings.baseline is not None
    name = OBJECTIVES[findings.goal.minimize]
    if name == "latency_ratio":
        relative = findings.relative(findings.best)
        assert relative is not None
        times, span = faster(relative)
        return "is ", tag("strong", times), f" ({span})"
    mine, other = (each.measurements[name].value for each in (findings.best, findings.baseline))
    if name == "size_bytes":
        return "is ", tag("strong", smaller(mine, other))
    return "needs ", tag("strong", f"{percent(abs(1 - mine / other))} {_less(mine, other)} memory")


def _resume(findings: Findings) -> Html | None:
    if "command" not in findings.facts:
        return None
    ways = ("Nothing is lost: run the command below with ", tag("code", "--resume"), " to go on and prove the result.")
    return tag("p", *ways, class_="why")
