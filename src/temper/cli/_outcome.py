"""What a person sees at the end of a run."""

from pathlib import Path

from rich.markup import escape

from temper.cli._tables import COLORS, console, judgement_lines, recipe_lines, rows_table
from temper.core.artifact import SCRIPT, Artifact
from temper.core.proof import Proof


def show_outcome(folder: Path, artifact: Artifact, proof: Proof) -> None:
    """The table, the verdicts, the report's path and the lines that load the artifact."""
    screen = console()
    screen.print()
    conditions = proof.goal.conditions.of(artifact.schema)
    screen.print(f"[bold]{escape(proof.task)}[/bold], {proof.examples} unseen examples, {conditions}")
    screen.print()
    screen.print(rows_table(proof.rows, proof.metric))
    screen.print()
    for line in recipe_lines(proof.rows):
        screen.print(line)
    screen.print()
    for line in judgement_lines(proof.judgements):
        screen.print(line)
    screen.print(f"[bold]verdict: [{COLORS[proof.verdict.value]}]{proof.verdict.value}[/][/bold]")
    screen.print(proof.notes[0], markup=False)
    screen.print()
    screen.print(f"artifact  {artifact.folder}", markup=False, soft_wrap=True)
    if (folder / "report.html").exists():
        screen.print(f"report    {folder / 'report.html'}", markup=False, soft_wrap=True)
    if SCRIPT not in artifact.files:
        return
    screen.print(f"\nThese lines load and run it ({artifact.folder / SCRIPT}):\n", markup=False, soft_wrap=True)
    for line in (artifact.folder / SCRIPT).read_text(encoding="utf-8").strip().splitlines():
        screen.print(f"    {line}", markup=False, soft_wrap=True)
