"""The proof: candidates, frozen and ordered from safest to boldest, on data that the search never saw."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from temper.core.errors import HostError, TemperError
from temper.core.goal import Goal
from temper.core.measurement import Measurement, megabytes
from temper.core.proof import Judgement, Row, Verdict
from temper.core.recipe import Recipe
from temper.core.schema import Array
from temper.core.trial import OBJECTIVES, Trial
from temper.measure.latency import Timing
from temper.measure.quality import Quality
from temper.pipeline.evaluate import counted_bytes
from temper.pipeline.subject import Subject
from temper.pipeline.workshop import Workshop

ROUNDS, BLOCK_S = 40, 0.025
PREDICTION_S = 3600.0
TITLES = {"latency_ratio": "latency", "size_bytes": "size", "memory_bytes": "peak memory", "latency_s": "p50 latency"}


@dataclass(frozen=True, kw_only=True)
class Tested:
    """An artifact whose quality was tested on the proof part, with its flat outputs there."""

    folder: Path
    recipe: Recipe
    quality: Quality
    outputs: tuple[Array, ...]
    judgement: Judgement

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def plausible(self) -> bool:
        """Whether the limit is kept on these examples, without proof that it is on others."""
        return self.verdict is Verdict.INCONCLUSIVE and self.quality.drop.value <= self.judgement.bound


def tested_in_order(
    workshop: Workshop, subject: Subject, candidates: Sequence[Trial], *, allow_unproven: bool
) -> tuple[list[Tested], TemperError | None]:
    """Test the candidates' quality at 5 % each, from safest to boldest, and stop at the first that is not accepted.

    Because the order was fixed before the data was seen, the chance that any accepted one is in truth beyond the
    limit stays at 5 % for the whole family. Reference: Maurer, Hothorn & Lehmacher 1995 (fixed sequence tests).
    The unchanged model in float32 is tested and reported, but stops nothing: it computes what the original computes.
    With `allow_unproven` what is INCONCLUSIVE does not stop the sequence, but nothing behind it is accepted any more.
    A candidate that fails on these examples stops the sequence too, and its error is returned; of the first, the
    baseline, it is raised.
    """
    tested: list[Tested] = []
    proven = True
    for trial in candidates:
        try:
            found = tested_quality(workshop, subject, workshop.artifact_of(trial), trial.recipe)
        except HostError:
            raise
        except TemperError as error:
            if not tested:
                raise
            return tested, error
        tested.append(found if proven else unproven(found, "tested behind one that is not proven"))
        unchanged = not trial.recipe.techniques and trial.recipe.runtime.full_precision
        proven &= found.verdict is Verdict.ACCEPT or unchanged
        if not proven and not (allow_unproven and tested[-1].verdict is Verdict.INCONCLUSIVE):
            break
    return tested, None


def unproven(tested: Tested, why: str) -> Tested:
    """INCONCLUSIVE for what alone would be accepted at 5 %, but not together with what was tested before it."""
    if tested.verdict is not Verdict.ACCEPT:
        return tested
    reason = f"{tested.judgement.reason}; but {why}"
    judgement = replace(tested.judgement, verdict=Verdict.INCONCLUSIVE, reason=reason)
    return replace(tested, judgement=judgement)


def tested_quality(workshop: Workshop, subject: Subject, artifact: Path, recipe: Recipe) -> Tested:
    """Predict every proof example with the artifact, reloaded in a fresh process, and judge the drop."""
    outputs = tuple(workshop.predict(artifact, subject.part, 0, len(subject.examples), time_s=PREDICTION_S))
    quality = subject.compare(outputs, workshop.goal.max_drop)
    judgement = judge_drop(quality, workshop.goal.max_drop)
    return Tested(folder=artifact, recipe=recipe, quality=quality, outputs=outputs, judgement=judgement)


def judge_drop(quality: Quality, max_drop: float) -> Judgement:
    """The verdict on the drop, in words."""
    test = quality.test
    verdict = Verdict(test.verdict)
    counted = (
        f"{test.disagreements} of {test.n} examples differ" if test.disagreements is not None else f"{test.n} examples"
    )
    reason = f"{test.drop:+.4f}, at most {test.upper:+.4f} with 95 % confidence ({counted}; {test.method})"
    if verdict is Verdict.INCONCLUSIVE:
        reason += (
            f". About {test.n_needed:,} examples would do"
            if test.n_needed
            else ". More examples are not expected to help: the drop itself is at the limit"
            if test.drop >= max_drop
            else ". There are too few examples to say how many would do"
        )
    return Judgement(limit="drop", bound=max_drop, measurement=quality.drop, verdict=verdict, reason=reason)


def measure_rows(
    workshop: Workshop, subject: Subject, contestants: Mapping[str, Tested]
) -> tuple[dict[str, Row], float]:
    """Latency, size and memory of the contestants by role, against `baseline`; and the noise floor of the ratios.

    All run in the same interleaved rounds. The baseline runs in two processes: how far those two seem to differ is
    the noise floor, and no smaller difference is claimed.
    """
    paths = {role: each.folder for role, each in contestants.items()}
    order = [*paths.values(), paths["baseline"]]
    *timings, again = workshop.time(order, subject.part, rounds=ROUNDS, block_s=BLOCK_S)
    by_role = dict(zip(paths, timings))
    same = again.ratio_to(by_role["baseline"])
    noise_floor = max(abs(same.lower - 1), abs(same.upper - 1))
    rows = {}
    for role, tested in contestants.items():
        measurements = {
            "score": tested.quality.score,
            "drop": tested.quality.drop,
            **timed(by_role[role], by_role["baseline"], noise_floor),
            "size_bytes": counted_bytes(paths[role]),
            "memory_bytes": workshop.memory(paths[role], subject.part),
            "energy_j": workshop.energy(paths[role], subject.part),
        }
        title = str(tested.recipe)
        rows[role] = Row(role=role, recipe=tested.recipe.to_json(), title=title, measurements=measurements)
    return rows, noise_floor


def timed(timing: Timing, baseline: Timing, noise_floor: float) -> dict[str, Measurement]:
    return {"latency_s": timing.latency(), "latency_ratio": timing.ratio_to(baseline, noise_floor)}


def judge_gain(goal: Goal, row: Row, baseline: Row) -> Judgement:
    """Whether the minimized quantity is provably below the baseline's, by more than noise."""
    name = OBJECTIVES[goal.minimize]
    mine = row.measurements[name]
    if name == "latency_ratio":
        bound = 1.0
        floor = mine.details["noise_floor"]
        words = (
            f"{mine.value:.3f} of the baseline's ({mine.lower:.3f} to {mine.upper:.3f}), {1 / mine.value:.2f} times as "
            f"fast; noise floor {floor:.1%}"
        )
    else:
        bound, floor = baseline.measurements[name].lower, 0.0
        words = f"{megabytes(mine.value)} against the baseline's {megabytes(bound)}"
    verdict = _verdict(mine, bound - floor, bound + floor)
    return Judgement(limit=name, bound=bound, measurement=mine, verdict=verdict, reason=f"{TITLES[name]} is {words}")


def judge_limits(goal: Goal, row: Row) -> tuple[Judgement, ...]:
    """The verdicts on the goal's further limits."""
    judgements = []
    for name, bound in goal.limits.items():
        mine = row.measurements[name]
        reason = (
            f"{TITLES[name]} is {mine.value:.4g} {mine.unit}, {mine.lower:.4g} to {mine.upper:.4g}; limit {bound:.4g}"
        )
        verdict = _verdict(mine, bound, bound)
        judgements.append(Judgement(limit=name, bound=bound, measurement=mine, verdict=verdict, reason=reason))
    return tuple(judgements)


def _verdict(measurement: Measurement, proven_under: float, refuted_over: float) -> Verdict:
    if measurement.status != "measured":
        return Verdict.INCONCLUSIVE  # an estimate cannot satisfy a limit
    if measurement.upper < proven_under:
        return Verdict.ACCEPT
    return Verdict.REJECT if measurement.lower > refuted_over else Verdict.INCONCLUSIVE


def digest(outputs: Sequence[Array]) -> str:
    """sha256 over the outputs' dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for output in outputs:
        total.update(f"{output.dtype}{output.shape}".encode())
        total.update(np.ascontiguousarray(output).tobytes())
    return total.hexdigest()
