"""temper show: what a run or an artifact holds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from temper.cli._options import Json


def command(
    folder: Annotated[Path, typer.Argument(help="The run's folder, or the artifact's own.")], as_json: Json = False
) -> None:
    """Show an artifact: its recipe, schema and proof, with every file checked."""
    from rich.markup import escape

    from temper.core.artifact import DAMAGED, PROOF, Artifact, damaged
    from temper.core.recipe import Recipe

    artifact = Artifact.open(folder)
    proof = artifact.proof()
    if as_json:
        document = {
            "recipe": artifact.recipe,
            "schema": artifact.schema.to_json(),
            "files": artifact.files,
            "proof": None if proof is None else proof.to_json(),
        }
        print(json.dumps(document))
        return
    from temper.cli._outcome import show_outcome
    from temper.cli._tables import console

    screen = console()
    screen.print(
        f"[bold]{escape(str(artifact.folder))}[/bold]: {len(artifact.files)} files, all as they were measured",
        soft_wrap=True,
    )
    screen.print(f"recipe    {Recipe.from_json(artifact.recipe)}", markup=False)
    for spec in artifact.schema.inputs:
        screen.print(f"input     {spec}", markup=False)
    for spec in artifact.schema.outputs:
        screen.print(f"output    {spec}", markup=False)
    if proof is None:
        screen.print("It carries no proof.")
    else:
        try:
            show_outcome(folder, artifact, proof)
        except DAMAGED as error:
            raise damaged(artifact.folder / PROOF, error) from error
