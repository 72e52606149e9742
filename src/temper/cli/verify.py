"""temper verify: measure an artifact again, here and now."""

import json
from pathlib import Path
from typing import Annotated

import typer

from temper.cli._options import Json, Trust


def command(
    folder: Annotated[Path, typer.Argument(help="The run's folder, or the artifact's own.")],
    task: Annotated[str, typer.Option(help="The task that it was made from: file.py:name or package.module:name.")],
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure an artifact again on this machine and judge every limit again; exit code 0 only for ACCEPT."""
    from temper.cli._progress import progress
    from temper.core.proof import Verdict
    from temper.pipeline.verify import verify

    with progress() as tell:
        result = verify(folder, task, trust=trust, tell=tell)
    if as_json:
        document = {
            "verdict": result.verdict.value,
            "reproduced": result.reproduced,
            "examples": result.examples,
            "judgements": [each.to_json() for each in result.judgements],
            "rows": [row.to_json() for row in result.rows],
        }
        print(json.dumps(document))
    else:
        from temper.cli._tables import COLORS, console, judgement_lines, recipe_lines, rows_table

        screen = console()
        screen.print(rows_table(result.rows, result.proof.metric))
        screen.print()
        for line in recipe_lines(result.rows):
            screen.print(line)
        screen.print()
        for line in judgement_lines(result.judgements):
            screen.print(line)
        if result.reproduced is None:
            screen.print("The predictions differ from the reported ones, which are not here to be compared one by one.")
        else:
            screen.print(f"{result.reproduced} of {result.examples} predictions are the reported ones, bit for bit.")
        screen.print(f"[bold]verdict: [{COLORS[result.verdict.value]}]{result.verdict.value}[/][/bold]")
    raise typer.Exit(0 if result.verdict is Verdict.ACCEPT else 1)
