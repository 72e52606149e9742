"""temper bench: interleaved latency, with intervals."""

import json
from typing import Annotated

import typer

from temper.cli._options import Batch, Json, Threads


def command(
    contestants: Annotated[list[str], typer.Argument(help="Tasks (file.py:name) and folders of artifacts or runs.")],
    threads: Threads = 1,
    batch: Batch = 1,
    rounds: Annotated[int, typer.Option(min=5, help="Interleaved rounds; more of them narrow the intervals.")] = 40,
    as_json: Json = False,
) -> None:
    """Time artifacts, and the unchanged models of tasks on every float runtime, in alternating blocks."""
    from temper.cli._progress import progress
    from temper.core.goal import Conditions
    from temper.pipeline.bench import bench

    conditions = Conditions(batch=batch, threads=threads)
    with progress() as tell:
        result = bench(contestants, conditions, rounds=rounds, tell=tell)
    if as_json:
        rows = [
            {"title": row.title, "latency_s": row.latency.to_json(), "ratio": row.ratio.to_json()}
            for row in result.rows
        ]
        print(json.dumps({"rows": rows, "noise_floor": result.noise_floor}))
        return
    from rich.markup import escape
    from rich.table import Table

    from temper.cli._tables import console, interval, milliseconds

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "p50", "p90", "p99", "ratio to the first"):
        table.add_column(name, justify="right" if name else "left")
    for row in result.rows:
        details = row.latency.details
        tail = (f"{details[name] * 1e3:.3f} ms" for name in ("p90", "p99"))
        table.add_row(escape(row.title), milliseconds(row.latency), *tail, interval(row.ratio, 3))
    screen = console()
    screen.print(table)
    screen.print(f"\n{conditions}; differences under {result.noise_floor:.1%} are noise")
