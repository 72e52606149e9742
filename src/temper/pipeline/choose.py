"""What ships: the best of the proven candidates, else the baseline, with the reason in a sentence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from temper.core.frontier import full_precision
from temper.core.proof import Judgement, Row, Verdict
from temper.core.recipe import Recipe
from temper.core.trial import Trial
from temper.pipeline.evaluate import counted_bytes
from temper.pipeline.prove import (
    BLOCK_S,
    ROUNDS,
    Tested,
    judge_gain,
    judge_limits,
    measure_rows,
    tested_in_order,
    tested_quality,
)
from temper.pipeline.subject import Subject
from temper.pipeline.workshop import Workshop

EAGER = "torch_eager"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The trial that ships, the baseline, and what the decision rests on."""

    tested: Tested
    baseline: Tested
    rows: tuple[Row, ...]
    judgements: tuple[Judgement, ...]
    steps: tuple[Mapping[str, Any], ...]
    reason: str


def choose(
    workshop: Workshop,
    subject: Subject,
    candidates: Sequence[Trial],
    trials: Sequence[Trial],
    *,
    allow_unproven: bool,
    tell: Callable[[str], None],
) -> Choice:
    """Open the proof: test the frozen candidates in order, then measure what was accepted, best first, and pick.

    `candidates` begin with the baseline; `trials` are all of the run.
    """
    count = len(subject.examples)
    tell(f"proof: {len(candidates)} frozen from safest to boldest, to be tested on {count} unseen examples")
    tested, failure = tested_in_order(workshop, subject, candidates, allow_unproven=allow_unproven)
    steps = [_step(each) for each in tested]
    if failure is not None:
        title = str(candidates[len(tested)].recipe)
        steps.append({"title": title, "verdict": Verdict.REJECT.value, "reason": f"it failed: {failure}"})
    start = _baseline(workshop, subject, trials, tested, allow_unproven=allow_unproven)
    if start is not tested[0]:
        steps.insert(1, _step(start))
    for step in steps:
        tell(f"proof: {step['title']}: {step['verdict']}: {step['reason']}")
    eligible = [each for each in tested[1:] if each.verdict is Verdict.ACCEPT or (allow_unproven and each.plausible)]
    shown = {"baseline": start}
    eager = next((each for each in trials if each.measured and _is_eager(each.recipe)), None)
    if eager is not None and eager.recipe != start.recipe:
        shown = {"eager": _tested(workshop, subject, eager), **shown}
    tell("proof: measuring latency in interleaved rounds, and memory")
    return _first_that_holds(workshop, subject, shown, _best_first(workshop, subject, start, eligible), steps)


def _first_that_holds(
    workshop: Workshop,
    subject: Subject,
    shown: Mapping[str, Tested],
    eligible: Sequence[Tested],
    steps: Sequence[Mapping[str, Any]],
) -> Choice:
    """The first of the candidates whose gain and further limits are proven too, else the baseline.

    Each is measured anew, so that the figures reported are not those that it was picked by.
    """
    goal = workshop.goal
    refused = []
    for candidate in eligible:
        rows, noise_floor = measure_rows(workshop, subject, {**shown, "chosen": candidate})
        judgements = (judge_gain(goal, rows["chosen"], rows["baseline"]), *judge_limits(goal, rows["chosen"]))
        broken = [each for each in judgements if each.verdict is not Verdict.ACCEPT]
        if not broken:
            proven = candidate.verdict is Verdict.ACCEPT
            how = "the best of those whose limits are all proven" if proven else "better, but its quality is NOT proven"
            return _choice(candidate, shown, rows, judgements, steps, f"In {goal.minimize} it is {how}", noise_floor)
        refused.append(f"{candidate.recipe}: {broken[0].reason}")
    baseline = shown["baseline"]
    rows, noise_floor = measure_rows(workshop, subject, shown)
    rows["chosen"] = replace(rows["baseline"], role="chosen")
    why = f"no proven candidate is better: {'; '.join(refused)}" if refused else _why_none(baseline, steps)
    reason = f"The unchanged model on its best runtime ships, because {why}"
    return _choice(baseline, shown, rows, judge_limits(goal, rows["baseline"]), steps, reason, noise_floor)


def _choice(
    tested: Tested,
    shown: Mapping[str, Tested],
    rows: Mapping[str, Row],
    judgements: Sequence[Judgement],
    steps: Sequence[Mapping[str, Any]],
    reason: str,
    noise_floor: float,
) -> Choice:
    return Choice(
        tested=tested,
        baseline=shown["baseline"],
        rows=tuple(rows[name] for name in ("eager", "baseline", "chosen") if name in rows),
        judgements=(tested.judgement, *judgements),
        steps=tuple(steps),
        reason=f"{reason}. Latency differences under {noise_floor:.1%} are noise here",
    )


def _best_first(workshop: Workshop, subject: Subject, start: Tested, eligible: Sequence[Tested]) -> list[Tested]:
    """The eligible ones ordered by a first measurement of the minimized quantity."""
    if len(eligible) < 2:
        return list(eligible)
    if workshop.goal.minimize == "latency":
        folders = [start.folder, *(each.folder for each in eligible)]
        baseline, *timings = workshop.time(folders, subject.part, rounds=ROUNDS, block_s=BLOCK_S)
        values = [timing.ratio_to(baseline).value for timing in timings]
    elif workshop.goal.minimize == "memory":
        values = [workshop.memory(each.folder, subject.part).value for each in eligible]
    else:
        values = [counted_bytes(each.folder).value for each in eligible]
    return [each for _, each in sorted(zip(values, eligible), key=lambda pair: pair[0])]


def _baseline(
    workshop: Workshop, subject: Subject, trials: Sequence[Trial], tested: Sequence[Tested], *, allow_unproven: bool
) -> Tested:
    """The baseline; if it computes in less than float32 and its quality is unproven, the best runtime that does not.

    With `allow_unproven` it stays as long as it keeps the limit on the proof examples.
    """
    kept = tested[0].verdict is Verdict.ACCEPT or (allow_unproven and tested[0].plausible)
    if kept or tested[0].recipe.runtime.full_precision:
        return tested[0]
    exact = full_precision(trials, workshop.goal)
    return tested[0] if exact is None else _tested(workshop, subject, exact)


def _why_none(baseline: Tested, steps: Sequence[Mapping[str, Any]]) -> str:
    """Why there was no candidate to measure."""
    others = [each for each in steps if each["title"] != str(baseline.recipe)]
    failed = next((each for each in others if each["verdict"] != Verdict.ACCEPT), None)
    if failed is not None:
        return f"the first candidate is {failed['verdict']}: {failed['reason']}"
    if baseline.verdict is not Verdict.ACCEPT:
        return f"even that is {baseline.verdict.value}: {baseline.judgement.reason}"
    return "the search found nothing better within the limits"


def _tested(workshop: Workshop, subject: Subject, trial: Trial) -> Tested:
    return tested_quality(workshop, subject, workshop.artifact_of(trial), trial.recipe)


def _is_eager(recipe: Recipe) -> bool:
    return not recipe.techniques and recipe.runtime.name == EAGER


def _step(tested: Tested) -> dict[str, Any]:
    return {"title": str(tested.recipe), "verdict": tested.verdict.value, "reason": tested.judgement.reason}
