"""What ships: the best of the proven candidates, else the baseline, with the reason in a sentence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from temper.core.frontier import frontier, full_precision
from temper.core.goal import Goal
from temper.core.proof import Judgement, Row, Verdict
from temper.core.recipe import Recipe
from temper.core.trial import OBJECTIVES, Trial
from temper.pipeline.prove import (
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
    trials: Sequence[Trial],
    *,
    allow_unproven: bool,
    tell: Callable[[str], None],
) -> Choice:
    """Open the proof: test the frontier in order, measure what was accepted, and pick."""
    goal = workshop.goal
    candidates = frontier(trials, goal)
    count = len(subject.examples)
    tell(f"proof: {len(candidates)} frozen from safest to boldest, to be tested on {count} unseen examples")
    tested, failure = tested_in_order(workshop, subject, candidates)
    steps = [_step(each) for each in tested]
    if failure is not None:
        title = str(candidates[len(tested)].recipe)
        steps.append({"title": title, "verdict": Verdict.REJECT.value, "reason": f"it failed: {failure}"})
    for step in steps:
        tell(f"proof: {step['title']}: {step['verdict']}: {step['reason']}")
    start = _baseline(workshop, subject, trials, tested)
    eligible = [each for each in tested[1:] if each.verdict is Verdict.ACCEPT]
    if allow_unproven and tested[-1].verdict is Verdict.INCONCLUSIVE and len(tested) > 1:
        eligible.append(tested[-1])
    contestants = {"baseline": start, **{f"candidate {index}": each for index, each in enumerate(eligible)}}
    eager = next((each for each in trials if each.measured and _is_eager(each.recipe)), None)
    if eager is not None and eager.recipe != start.recipe:
        contestants["eager"] = _tested(workshop, subject, eager)
    tell(f"proof: measuring latency in interleaved rounds, and memory: {', '.join(contestants)}")
    rows, noise_floor = measure_rows(workshop, subject, contestants)
    role, judgements, reason = _pick(goal, contestants, rows, steps)
    chosen = contestants[role]
    final = {**rows, "chosen": Row(**{**vars(rows[role]), "role": "chosen"})}
    shown = ("eager", "baseline", "chosen")
    return Choice(
        tested=chosen,
        baseline=start,
        rows=tuple(final[name] for name in shown if name in final),
        judgements=(chosen.judgement, *judgements),
        steps=tuple(steps),
        reason=f"{reason}. Latency differences under {noise_floor:.1%} are noise here",
    )


def _baseline(workshop: Workshop, subject: Subject, trials: Sequence[Trial], tested: Sequence[Tested]) -> Tested:
    """The baseline, unless the proof refutes its quality: then the best float32 runtime, which loses nothing."""
    if tested[0].verdict is not Verdict.REJECT:
        return tested[0]
    exact = full_precision(trials, workshop.goal)
    return tested[0] if exact is None else _tested(workshop, subject, exact)


def _pick(
    goal: Goal, contestants: Mapping[str, Tested], rows: Mapping[str, Row], steps: Sequence[Mapping[str, Any]]
) -> tuple[str, tuple[Judgement, ...], str]:
    """The role of what ships, its judgements beside quality, and why it and nothing else."""
    name = OBJECTIVES[goal.minimize]
    best: tuple[float, str, tuple[Judgement, ...]] | None = None
    refused = []
    for role in (role for role in contestants if role.startswith("candidate")):
        judgements = (judge_gain(goal, rows[role], rows["baseline"]), *judge_limits(goal, rows[role]))
        broken = [each for each in judgements if each.verdict is not Verdict.ACCEPT]
        if broken:
            refused.append(f"{rows[role].title}: {broken[0].reason}")
            continue
        value = rows[role].measurements[name].value
        if best is None or value < best[0]:
            best = value, role, judgements
    if best is not None:
        proven = contestants[best[1]].verdict is Verdict.ACCEPT
        how = "the best of those whose limits are all proven" if proven else "better, though its quality is NOT proven"
        return best[1], best[2], f"In {goal.minimize} it is {how}"
    if len(steps) == 1 and steps[0]["verdict"] != Verdict.ACCEPT:
        why = f"even the unchanged model on its best runtime is {steps[0]['verdict']}: {steps[0]['reason']}"
    elif refused:
        why = f"no proven candidate is better: {'; '.join(refused)}"
    elif len(steps) > 1:
        why = f"the first candidate is {steps[-1]['verdict']}: {steps[-1]['reason']}"
    else:
        why = "the search found nothing better within the limits"
    limits = judge_limits(goal, rows["baseline"])
    return "baseline", limits, f"The unchanged model on its best runtime ships, because {why}"


def _tested(workshop: Workshop, subject: Subject, trial: Trial) -> Tested:
    return tested_quality(workshop, subject, workshop.folder.trial(trial.number), trial.recipe)


def _is_eager(recipe: Recipe) -> bool:
    return not recipe.techniques and recipe.runtime.name == EAGER


def _step(tested: Tested) -> dict[str, Any]:
    return {"title": str(tested.recipe), "verdict": tested.verdict.value, "reason": tested.judgement.reason}
