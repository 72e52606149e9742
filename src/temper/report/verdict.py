"""The verdict: what ships, how much better it is and how sure that is, in a sentence that anyone understands."""

from temper.core.measurement import Measurement
from temper.core.proof import Proof, Row, Verdict
from temper.core.trial import OBJECTIVES
from temper.report.findings import Findings
from temper.report.markup import Html, badge, joined, tag
from temper.report.words import (
    faster,
    is_noise,
    megabytes,
    plural,
    quality,
    recipe_in_words,
    significant,
    smaller,
)


def verdict(findings: Findings) -> Html:
    """The head of the page: the verdict as a label, the sentence, and the figures that it rests on."""
    proof = findings.proof
    if proof is None:
        label, sentence, rest = "NO PROOF", _unproven(findings), [_resume(findings)]
    elif findings.baseline_ships:
        label, sentence = str(proof.verdict), _own_model(proof)
        rest = [tag("p", proof.notes[0] + "." if proof.notes else "", class_="why"), _figures(proof)]
    else:
        label, sentence = str(proof.verdict), _gain(proof)
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
    float_runtime = recipe_in_words(baseline.recipe).removeprefix("unchanged model on ")
    speed, bytes_ = _speed(chosen.measurements["latency_ratio"]), _size(chosen, baseline)
    memory = _memory(chosen, baseline)
    first, second = {"size": (bytes_, speed), "memory": (memory, speed)}.get(proof.goal.minimize, (speed, bytes_))
    return joined(
        (
            "The optimized model ",
            first,
            f" than your own model on its best float runtime here, {float_runtime}; it ",
            second,
            " and ",
            *_loss(proof, chosen.measurements["drop"]),
            ".",
        )
    )


def _speed(ratio: Measurement) -> Html:
    times, span = faster(ratio)
    if is_noise(ratio):
        return joined(("runs ", tag("strong", "neither faster nor slower"), f" beyond noise (ratio {ratio.value:.2f})"))
    return joined(("runs ", tag("strong", times), f" ({span})"))


def _size(chosen: Row, baseline: Row) -> Html:
    mine, other = (row.measurements["size_bytes"].value for row in (chosen, baseline))
    return joined(("is ", tag("strong", smaller(mine, other))))


def _memory(chosen: Row, baseline: Row) -> Html:
    mine, other = (row.measurements["memory_bytes"].value for row in (chosen, baseline))
    less = f"{abs(1 - mine / other):.0%}".replace("%", " %")
    return joined(("needs ", tag("strong", f"{less} {'less' if mine <= other else 'more'} memory")))


def _loss(proof: Proof, drop: Measurement) -> tuple[str, ...]:
    examples = f"on {proof.examples:,} examples that the search never saw"
    limit = proof.goal.max_drop
    if drop.value <= 0:
        lost: tuple[str, ...] = (tag("strong", f"lost no {proof.metric}"),)
    else:
        lost = ("lost ", tag("strong", quality(drop.value, proof.metric, limit)))
    if drop.upper == float("inf"):
        bound = ", though these examples cannot bound the loss,"
    else:
        bound = f", at most {quality(drop.upper, proof.metric, limit)} with {drop.confidence:.0%} confidence,"
    doubt = "" if proof.verdict is Verdict.ACCEPT else "; not every limit is proven"
    return (*lost, bound.replace("%", " %"), f" {examples}{doubt}")


def _own_model(proof: Proof) -> Html:
    row = proof.row("chosen")
    runtime = recipe_in_words(row.recipe).removeprefix("unchanged model on ")
    eager = next((each for each in proof.rows if each.role == "eager"), None)
    against = ""
    if eager is not None and not is_noise(eager.measurements["latency_ratio"]):
        ratio = eager.measurements["latency_ratio"].value
        against = f", {ratio:.2f}× as fast as in PyTorch eager" if ratio > 1 else ""
    return joined(
        (
            tag("strong", "Your own model ships unchanged"),
            f", on its best float runtime here, {runtime}{against}; it ",
            *_loss(proof, row.measurements["drop"]),
            ".",
        )
    )


def _shipped(proof: Proof) -> Html:
    reason = f" {proof.notes[0]}." if proof.notes else ""
    return tag("p", tag("b", "What ships: "), f"{recipe_in_words(proof.row('chosen').recipe)}.{reason}", class_="why")


def _figures(proof: Proof) -> Html:
    """The few numbers that matter, side by side."""
    baseline, chosen = proof.row("baseline").measurements, proof.row("chosen").measurements
    drop, limit, metric = chosen["drop"], proof.goal.max_drop, proof.metric
    latency, before = chosen["latency_s"].value, baseline["latency_s"].value
    pairs = [
        ("Latency, p50", f"{significant(latency * 1e3)} ms", f"float: {significant(before * 1e3)} ms"),
        _amount("Size", chosen["size_bytes"], baseline["size_bytes"]),
        _amount("Peak memory", chosen["memory_bytes"], baseline["memory_bytes"]),
        (f"Lost {metric}, at most", _bare(drop.upper, metric, limit), f"limit: {_bare(limit, metric, limit)}"),
        ("Unseen examples", f"{proof.examples:,}", "the proof part"),
    ]
    figures = (
        tag("div", tag("dt", title), tag("dd", number), tag("dd", note, class_="note")) for title, number, note in pairs
    )
    return tag("dl", *figures, class_="figures")


def _amount(title: str, mine: Measurement, other: Measurement) -> tuple[str, str, str]:
    return title, megabytes(mine.value), f"float: {megabytes(other.value)}"


def _bare(amount: float, metric: str, limit: float) -> str:
    if amount == float("inf"):
        return "unbounded"
    words = quality(amount, metric, limit).removesuffix(f" of {metric}").replace("percentage points", "pp")
    return words.replace("-", "−")


def _unproven(findings: Findings) -> Html:
    tried = plural(len(findings.trials), "trial")
    start, best = findings.baseline, findings.best
    if start is None or best is None:
        return joined(
            (
                "This run stopped before its proof: after ",
                tried,
                " nothing was measured yet, so nothing can be claimed.",
            )
        )
    ending: tuple[str, ...]
    if best is start:
        ending = (" and found nothing better than your own model on ", recipe_in_words(best.recipe).split(" on ")[-1])
    else:
        ending = (
            " and its best candidate so far ",
            tag("strong", _candidate(findings)),
            " than the best float runtime",
        )
    on = ", measured on the selection part only" if best is not start else ""
    return joined((f"This run stopped before its proof, so nothing is proven: it made {tried}", *ending, f"{on}."))


def _candidate(findings: Findings) -> str:
    assert findings.best is not None
    assert findings.baseline is not None
    name = OBJECTIVES[findings.goal.minimize]
    if name == "latency_ratio":
        relative = findings.relative(findings.best)
        assert relative is not None
        times, span = faster(relative)
        return f"is {times} ({span})"
    mine, other = (each.measurements[name].value for each in (findings.best, findings.baseline))
    what = "files" if name == "size_bytes" else "peak memory"
    return f"has {abs(1 - mine / other):.0%} ".replace("%", " %") + f"{'less' if mine <= other else 'more'} {what}"


def _resume(findings: Findings) -> Html | None:
    command = findings.facts.get("command")
    if command is None:
        return None
    return tag(
        "p", "Nothing is lost. To go on from here and prove the result, run the command below with ",
        tag("code", "--resume"), ".", class_="why",
    )  # fmt: skip
