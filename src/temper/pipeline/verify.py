"""Verify an artifact: measure it again, here and now, and judge every limit again."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from temper.core import artifact as artifacts
from temper.core.artifact import Artifact
from temper.core.errors import ArtifactError, TaskError
from temper.core.proof import Judgement, Proof, Row, Verdict
from temper.core.recipe import Recipe
from temper.core.schema import Array
from temper.core.task import Task
from temper.pipeline.prepare import prepare
from temper.pipeline.prove import (
    PREDICTION_S,
    Tested,
    digest,
    judge_gain,
    judge_limits,
    measure_rows,
    tested_quality,
    unproven,
)
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.subject import Subject, subject
from temper.pipeline.task_loading import load_task
from temper.pipeline.workshop import Workshop


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The judgements and rows as measured now, and how many predictions are the reported ones to the last bit."""

    proof: Proof
    rows: tuple[Row, ...]
    judgements: tuple[Judgement, ...]
    reproduced: int | None
    examples: int

    @property
    def verdict(self) -> Verdict:
        """ACCEPT if every limit is proven again."""
        verdicts = [judgement.verdict for judgement in self.judgements]
        return next((each for each in (Verdict.REJECT, Verdict.INCONCLUSIVE) if each in verdicts), Verdict.ACCEPT)


def verify(
    folder: Path | str, task: Task | str, *, trust: bool = False, tell: Callable[[str], None] = lambda line: None
) -> Verification:
    """Measure the artifact in `folder` (or in its `artifact` folder) on the task's proof part, in fresh processes.

    The baseline is the one that lies beside the artifact, or is built again from the recipe in the proof. Native code
    of either is loaded only with `trust`. Raises: ArtifactError if the artifact must not be loaded or has no proof;
    TaskError if the task is not the proof's.
    """
    artifact = Artifact.open(folder)
    artifact.check_trust(trust)
    proof = artifact.proof()
    if proof is None:
        raise ArtifactError(f"{artifact.folder} carries no proof: there is nothing to verify it against")
    loaded = load_task(task) if isinstance(task, str) else task
    with tempfile.TemporaryDirectory(prefix="temper-verify-") as scratch:
        place = RunFolder(Path(scratch))
        prepared = prepare(loaded, proof.goal, proof.seed, place, tell)
        changed = [
            name for name in ("model", "metric", "proof data") if prepared.fingerprint[name] != proof.fingerprint[name]
        ]
        if changed:
            raise TaskError(
                f"this is not the task that the artifact was proven on: its {' and '.join(changed)} differ. Verify it "
                "with the task that it was made from"
            )
        on_proof = subject(
            prepared.module, prepared.parts.proof, "proof", prepared.metric, prepared.graph.schema, proof.seed
        )
        with Workshop(place, proof.goal, prepared.target, proof.seed) as workshop:
            return _verified(workshop, on_proof, artifact, proof, trust, tell)


def _verified(
    workshop: Workshop, on_proof: Subject, artifact: Artifact, proof: Proof, trust: bool, tell: Callable[[str], None]
) -> Verification:
    tell(f"predicting {proof.examples} proof examples with {artifact.folder}")
    recipe = Recipe.from_json(artifact.recipe)
    chosen = tested_quality(workshop, on_proof, artifact.folder, recipe)
    if proof.judgements and proof.judgements[0].verdict is not Verdict.ACCEPT:
        chosen = unproven(chosen, "its own proof, on the same examples, is not ACCEPT")
    baseline_recipe = Recipe.from_json(proof.row("baseline").recipe)
    contestants = {"baseline": chosen}
    if baseline_recipe != recipe:
        baseline = _baseline(workshop, artifact, baseline_recipe, trust)
        contestants = {"baseline": tested_quality(workshop, on_proof, baseline, baseline_recipe), "chosen": chosen}
    tell("measuring latency in interleaved rounds, and memory")
    rows, _ = measure_rows(workshop, on_proof, contestants)
    row = rows.get("chosen", rows["baseline"])
    gain = (judge_gain(proof.goal, row, rows["baseline"]),) if "chosen" in rows else ()
    return Verification(
        proof=proof,
        rows=tuple(rows.values()),
        judgements=(chosen.judgement, *gain, *judge_limits(proof.goal, row)),
        reproduced=_reproduced(artifact, proof, chosen),
        examples=proof.examples,
    )


def _baseline(workshop: Workshop, artifact: Artifact, recipe: Recipe, trust: bool) -> Path:
    """The baseline's artifact: the one that was kept, or one built again, as native code that nobody trusts is."""
    kept = RunFolder(artifact.folder.parent).baseline
    if (kept / artifacts.MANIFEST).is_file():
        found = Artifact.open(kept)
        if found.recipe == recipe.to_json() and (trust or not found.runtime.native):
            return kept
    place = workshop.folder.trial(0)
    workshop.build(recipe, place, time_s=PREDICTION_S)
    return place


def _reproduced(artifact: Artifact, proof: Proof, chosen: Tested) -> int | None:
    """How many examples are predicted as reported, bit for bit; None if they differ and the reported ones are gone."""
    if digest(chosen.outputs) == proof.predictions:
        return proof.examples
    files = [artifact.folder.parent / "predictions" / f"output_{i}.npy" for i in range(len(chosen.outputs))]
    if not all(file.is_file() for file in files):
        return None
    reported: list[Array] = [np.load(file, allow_pickle=False) for file in files]
    same = np.ones(proof.examples, bool)
    for before, now in zip(reported, chosen.outputs):
        same &= (before == now).reshape(len(now), -1).all(axis=1)
    return int(same.sum())
