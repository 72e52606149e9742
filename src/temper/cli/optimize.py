"""temper optimize: from a trained model to a proven artifact."""

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from temper.cli._options import Batch, Json, Length, Threads


def command(
    task: Annotated[str, typer.Argument(help="The task: file.py:name or package.module:name.")],
    out: Annotated[Path, typer.Option(help="The folder of the run, which must be new unless --resume is given.")],
    max_drop: Annotated[float, typer.Option(help="Greatest loss of the metric that is allowed, in its units.")] = 0.01,
    minimize: Annotated[str, typer.Option(help="latency, size or memory.")] = "latency",
    budget: Annotated[str, typer.Option(help="How long it may take, such as 90s, 10m or 1h.")] = "10m",
    trials: Annotated[int | None, typer.Option(min=1, help="So many trials instead: the reproducible mode.")] = None,
    threads: Threads = 1,
    batch: Batch = 1,
    length: Length = None,
    seed: Annotated[int, typer.Option(help="Of everything random: splits, calibration, resampling.")] = 0,
    runtimes: Annotated[str, typer.Option(help="Those that may be used, with commas between; default: all.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    allow_unproven: Annotated[
        bool, typer.Option("--allow-unproven", help="Ship an artifact whose quality is INCONCLUSIVE.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring back the best artifact that provably keeps the limits on this machine."""
    from temper.cli._progress import progress
    from temper.core.goal import Conditions, Goal, Objective
    from temper.pipeline.optimize import optimize

    conditions = Conditions(batch=batch, threads=threads, length=length)
    goal = Goal(minimize=cast(Objective, minimize), max_drop=max_drop, conditions=conditions)
    with progress() as tell:
        result = optimize(
            task,
            goal,
            out=out,
            budget=budget,
            trials=trials,
            seed=seed,
            resume=resume,
            allow_unproven=allow_unproven,
            runtimes=runtimes.replace(" ", "").split(",") if runtimes else None,
            tell=tell,
        )
    if as_json:
        document = {
            "artifact": str(result.artifact.folder),
            "report": str(result.report),
            "proof": result.proof.to_json(),
        }
        print(json.dumps(document))
        return
    from temper.cli._outcome import show_outcome

    show_outcome(result.folder, result.artifact, result.proof)
