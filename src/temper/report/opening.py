"""How the proof was opened: the frozen candidates in order, and where the testing stopped."""

from temper.core.proof import Proof
from temper.report.findings import Findings
from temper.report.markup import Html, badge, section, tag
from temper.report.words import recipe_in_words, typeset

RULE = (
    "The proof part was opened once. Before that, the candidates were frozen and ordered from safest to boldest; each "
    "was then tested in that order at an error rate of 5\u00a0%, stopping at the first that was not accepted. Because "
    "the order was fixed beforehand, the chance that anything accepted is in truth beyond the limit stays at 5\u00a0% "
    "for all of them together."
)
BEYOND = (
    " On request, the testing went on behind what is INCONCLUSIVE. Nothing behind it counts as proven, whatever it "
    "would be alone."
)


def opening(findings: Findings) -> Html:
    """The steps of the proof, one after the other."""
    proof = findings.proof
    if proof is None:
        return section(
            "proof",
            "How the proof was opened",
            tag("p", "The journal holds no proof: the run stopped before one was complete."),
        )
    steps = [_step(findings, step["title"], step["verdict"], step["reason"]) for step in proof.steps]
    return section(
        "proof",
        "How the proof was opened",
        tag("p", RULE + BEYOND if _went_on(proof) else RULE),
        tag("ol", *steps, *_unopened(findings, proof), class_="steps"),
    )


def _went_on(proof: Proof) -> bool:
    return any("tested behind" in step["reason"] for step in proof.steps)


def _step(findings: Findings, title: str, verdict: str, reason: str) -> Html:
    return tag("li", badge(verdict), tag("div", tag("b", _capital(findings.titled(title))), tag("p", typeset(reason))))


def _unopened(findings: Findings, proof: Proof) -> list[Html]:
    """Candidates that were frozen and never tested."""
    tested = {step["title"] for step in proof.steps}
    rest = (trial for trial in findings.candidates if str(trial.recipe) not in tested)
    why = "The one before it was not accepted, so the testing had stopped."
    return [
        tag("li", badge("NOT TESTED"), tag("div", tag("b", _capital(recipe_in_words(trial.recipe))), tag("p", why)))
        for trial in rest
    ]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
