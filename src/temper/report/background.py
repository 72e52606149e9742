"""What the numbers rest on: data, model, machine, and how to repeat them."""

import json
from collections.abc import Mapping
from typing import Any

from temper.core.measurement import megabytes, significant
from temper.core.proof import Proof
from temper.core.recipe import Recipe
from temper.core.schema import Schema
from temper.core.target import Target, multiplies
from temper.report.findings import Findings
from temper.report.markup import Column, Html, definitions, joined, section, table, tag
from temper.report.words import gigabytes, plural

USES = {
    "calibration": "ranges and statistics for techniques; no labels needed",
    "training": "recovery and distillation",
    "selection": "what the search may look at",
    "proof": "opened once, after the candidates were frozen",
}
LOADING = 'from temper import load\n\nmodel = load("artifact"{trust})\noutputs = model(x)'
UNKNOWN = "The run stopped before this was noted."


def data(findings: Findings) -> Html:
    """The parts, what each is for, and how they were split."""
    task = findings.task
    if not task:
        return section("data", "Data", tag("p", UNKNOWN))
    columns = [Column(title="Part"), Column(title="Examples", numeric=True), Column(title="What it is for")]
    rows = [(part, f"{size:,}", USES.get(part, "")) for part, size in task.get("examples", {}).items()]
    notes = [tag("li", note) for note in task.get("notes", ())]
    told = (
        tag("ul", *notes) if notes else tag("p", "The parts were given as they are; no example stands in two of them.")
    )
    return section("data", "Data", table("The parts, which share no example", columns, rows, classes="plain"), told)


def model(findings: Findings) -> Html:
    """What was optimized."""
    task = findings.task
    if not task:
        return section("model", "Model", tag("p", UNKNOWN))
    schema = Schema.from_json(task["schema"])
    flops = task.get("flops")
    return section(
        "model",
        "Model",
        definitions(
            (
                ("Class", str(task.get("model", ""))),
                ("Metric", findings.metric),
                ("Parameters", f"{task['parameters']:,}"),
                ("Operators in the graph", f"{task['operators']:,}"),
                ("FLOPs a call", None if flops is None else f"{_large(flops)} (batch {_batch(findings, schema)})"),
                ("Weights", megabytes(task["weight_bytes"])),
                ("Inputs", joined((tag("code", str(spec)) for spec in schema.inputs), ", ")),
                ("Outputs", joined((tag("code", str(spec)) for spec in schema.outputs), ", ")),
            )
        ),
    )


def environment(findings: Findings) -> Html:
    """The machine, the versions, and the conditions that were equal for everyone."""
    facts = findings.facts
    if "target" not in facts:
        return section("environment", "Environment", tag("p", UNKNOWN))
    target = Target.from_json(facts["target"])
    seed = facts.get("seed")
    return section(
        "environment",
        "Environment",
        definitions(
            (
                ("Processor", target.processor),
                ("Cores available", f"{target.cores}"),
                ("Instruction sets", ", ".join(target.features) or "none of those that matter here"),
                ("One core multiplies", multiplies(target.precisions)),
                ("Memory", gigabytes(target.memory_bytes)),
                ("System", target.system),
                ("Conditions", findings.conditions),
                ("Seed", None if seed is None else str(seed)),
                ("Runtimes", ", ".join(target.runtimes)),
                ("Versions", ", ".join(f"{name} {version}" for name, version in target.versions.items())),
            )
        ),
        _missing(facts.get("missing") or {}),
        _inapplicable(facts.get("inapplicable") or {}),
    )


def reproduce(findings: Findings) -> Html:
    """The command that repeats the run, and the lines that use its artifact."""
    command, proof = findings.facts.get("command"), findings.proof
    loading: tuple[Html, ...] = (tag("h3", "Load the artifact"), _block(_loading(proof), "lines"))
    if proof is not None:
        loading += (_recipe(proof),)
    else:
        loading = (tag("p", "The lines that load the artifact will stand here once there is one."),)
    again: tuple[Html, ...] = (tag("p", UNKNOWN),)
    if command is not None:
        again = (tag("h3", "Run it again"), _block(_tokens(str(command)), "command"))
    return section("reproduce", "Reproduce", *again, *loading)


def _loading(proof: Proof | None) -> str:
    native = proof is not None and Recipe.from_json(proof.row("chosen").recipe).runtime.native
    return LOADING.format(trust=", trust=True" if native else "")


def _recipe(proof: Proof) -> Html:
    text = json.dumps(proof.row("chosen").recipe, indent=2, ensure_ascii=False)
    return tag("details", tag("summary", "The recipe of what ships"), _block(text, "recipe"))


def _missing(missing: Mapping[str, Any]) -> Html:
    if not missing:
        return tag("p", "Every runtime that temper knows is installed here.", class_="note")
    entries = (tag("li", tag("b", name.replace("_", " ")), ": ", str(sentence)) for name, sentence in missing.items())
    found = plural(len(missing), "runtime")
    return joined((tag("p", f"Not installed here, and therefore not tried: {found}."), tag("ul", *entries)))


def _inapplicable(reasons: Mapping[str, Any]) -> Html:
    entries = (tag("li", tag("b", name), ": ", str(sentence)) for name, sentence in reasons.items())
    told = tag("p", "Not tried, because the model is not one that they work on:")
    return joined((told, tag("ul", *entries))) if reasons else joined(())


def _block(text: str, what: str) -> Html:
    button = tag("button", "Copy", type="button", class_="copy", aria_label=f"Copy the {what}")
    return tag("div", tag("pre", tag("code", text), tabindex="0"), button, class_="block")


def _tokens(command: str) -> Html:
    """The command in pieces that a line break keeps whole."""
    return joined((tag("span", token, class_="token") for token in command.split(" ")), " ")


def _batch(findings: Findings, schema: Schema) -> int:
    return schema.batch or findings.goal.conditions.batch


def _large(number: float) -> str:
    for name, size in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{significant(number / size)} {name}"
    return f"{number:,.0f}"
