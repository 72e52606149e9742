"""temper demo: the main job on real digits, in a few minutes."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from temper.cli._options import Json


def command(
    out: Annotated[
        Path | None, typer.Option(help="A new folder for task, weights and run; temper-demo, or the next free number.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many trials the search may make.")] = 9,
    as_json: Json = False,
) -> None:
    """Train a small network on handwritten digits, optimize it, and verify the artifact in a fresh process."""
    from importlib.resources import files

    from rich.markup import escape

    from temper.cli._tables import console
    from temper.core.errors import UsageError

    out = out or _free_folder()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty: choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    task = out / "digits.py"
    task.write_text(files("temper.demo").joinpath("digits.py").read_text(encoding="utf-8"), encoding="utf-8")
    run = out / "run"
    steps = (
        # What optimize prints at the end is what show prints; its progress goes to standard error and is seen.
        (["optimize", f"{task}:task", "--out", str(run), "--max-drop", "0.02", "--trials", str(trials)], True),
        (["verify", str(run), "--task", f"{task}:task"], as_json),
        (["show", str(run), *(["--json"] if as_json else [])], False),
    )
    screen = console(progress=as_json)
    codes = []
    for words, quiet in steps:
        screen.print(f"\n[bold]$ temper {escape(' '.join(words))}[/bold]\n", soft_wrap=True)
        sys.stdout.flush()
        output = subprocess.DEVNULL if quiet else None
        codes.append(subprocess.run([sys.executable, "-m", "temper", *words], check=False, stdout=output).returncode)
        if codes[0]:
            break
    screen.print(f"\nThe task is {task}: change it into yours.", markup=False, soft_wrap=True)
    raise typer.Exit(max(codes))


def _free_folder() -> Path:
    names = itertools.chain(["temper-demo"], (f"temper-demo-{number}" for number in itertools.count(2)))
    return next(folder for folder in map(Path, names) if not folder.exists())
