"""temper bench: interleaved latency with intervals, or latency and throughput under load."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from temper.cli._options import Batch, Json, Length, Threads, Trust
from temper.core.errors import UsageError

if TYPE_CHECKING:
    from temper.core.goal import Conditions
    from temper.pipeline.bench import Bench
    from temper.pipeline.load import Loaded

Rate = Annotated[float | None, typer.Option(help="Requests a second that arrive at random, ready or not.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Instances that answer side by side, with --rate.")]
Limit = Annotated[
    float | None, typer.Option("--p99", help="Seconds: find instances, threads, batch and rate that keep this p99.")
]
Duration = Annotated[float, typer.Option(help="Seconds of each of the windows of --rate and --p99.")]
Rounds = Annotated[int, typer.Option(min=5, help="Interleaved rounds; more of them narrow the intervals.")]


def command(
    context: typer.Context,
    contestants: Annotated[list[str], typer.Argument(help="Tasks (file.py:name) and folders of artifacts or runs.")],
    threads: Threads = 1,
    batch: Batch = 1,
    length: Length = None,
    rounds: Rounds = 40,
    rate: Rate = None,
    concurrency: Concurrency = 1,
    p99: Limit = None,
    duration: Duration = 5.0,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Time artifacts, and unchanged models of tasks on every float runtime, in alternating blocks, or under load."""
    from temper.cli._progress import progress
    from temper.core.goal import Conditions
    from temper.measure.load import Service
    from temper.pipeline.bench import bench
    from temper.pipeline.load import best_services, load

    if rate is not None and p99 is not None:
        raise UsageError("--rate offers one load, and --p99 looks for the highest: give one of the two")
    chosen = [name for name in ("threads", "batch", "concurrency") if _given(context, name)]
    if p99 is not None and chosen:
        raise UsageError(f"--p99 looks for the best {', '.join(chosen)}: leave --{' and --'.join(chosen)} out")
    if rate is None and _given(context, "concurrency"):
        raise UsageError("--concurrency says how many instances answer a load: give its --rate too")
    if (rate is not None or p99 is not None) and _given(context, "rounds"):
        raise UsageError("--rounds belongs to latencies without a load: with --rate and --p99 it is --duration")
    if rate is None and p99 is None and _given(context, "duration"):
        raise UsageError("--duration belongs to --rate and --p99: without a load it is --rounds")
    if p99 is not None and len(contestants) > 1:
        raise UsageError(f"--p99 takes one artifact at a time, and was given {len(contestants)}")
    if p99 is not None:
        with progress() as tell:
            found = best_services(contestants[0], p99_s=p99, duration_s=duration, length=length, trust=trust, tell=tell)
        _show_load(found, as_json, p99)
    elif rate is not None:
        service = Service(instances=concurrency, threads=threads, batch=batch, length=length)
        with progress() as tell:
            found = load(contestants, service, rate=rate, duration_s=duration, trust=trust, tell=tell)
        _show_load(found, as_json)
    else:
        conditions = Conditions(batch=batch, threads=threads, length=length)
        with progress() as tell:
            result = bench(contestants, conditions, rounds=rounds, trust=trust, tell=tell)
        _show_bench(result, conditions, as_json)


def _given(context: typer.Context, option: str) -> bool:
    """Whether the user wrote the option, rather than left it to its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _show_bench(result: "Bench", conditions: "Conditions", as_json: bool) -> None:
    if as_json:
        rows = [
            {"title": row.title, "latency_s": row.latency.to_json(), "ratio": row.ratio.to_json()}
            for row in result.rows
        ]
        print(json.dumps({"rows": rows, "noise_floor": result.noise_floor}))
        return
    from rich.markup import escape

    from temper.cli._tables import console, interval, milliseconds

    table = _table("", "p50", "p90", "p99", "ratio to the first")
    for row in result.rows:
        details = row.latency.details
        tail = (f"{details[name] * 1e3:.3f} ms" for name in ("p90", "p99"))
        table.add_row(escape(row.title), milliseconds(row.latency), *tail, interval(row.ratio, 3))
    screen = console()
    screen.print(table)
    screen.print(f"\n{conditions}; differences under {result.noise_floor:.1%} are noise")


def _show_load(found: "Sequence[Loaded]", as_json: bool, p99_s: float = float("inf")) -> None:
    if as_json:
        print(json.dumps({"rows": [_load_row(each, p99_s) for each in found]}))
        return
    from rich.markup import escape

    from temper.cli._tables import console

    screen = console()
    table = _table("served by", "requests/s", "answers/s", "p50", "p90", "p99", "its windows", "unanswered")
    for title in dict.fromkeys(each.title for each in found):
        screen.print(escape(title))
    for each in found:
        (p50, *_), (p90, *_), (p99, best, worst) = (each.percentile(share) for share in (50, 90, 99))
        single = (f"{value * 1e3:.2f} ms" for value in (p50, p90, p99))
        windows = f"{best * 1e3:.2f}–{worst * 1e3:.2f} ms"
        style = None if each.keeps(p99_s) else "dim strike"
        rates = (f"{each.rate:.1f}", f"{each.throughput:.1f}")
        table.add_row(str(each.service), *rates, *single, windows, f"{each.unanswered:.1%}", style=style)
    screen.print(table)
    screen.print(f"\nrequests at random times, each latency from its arrival on, {len(found[0].windows)} windows a row")
    if p99_s < float("inf"):
        screen.print(
            f"the highest rates that keep p99 within {p99_s * 1e3:g} ms; struck out: over it even when almost idle"
        )


def _load_row(each: "Loaded", p99_s: float) -> dict[str, Any]:
    service = each.service
    return {
        "title": each.title,
        "instances": service.instances,
        "threads": service.threads,
        "batch": service.batch,
        "rate": each.rate,
        "throughput": each.throughput,
        "unanswered": each.unanswered,
        "keeps_p99": each.keeps(p99_s),
        **{f"p{share}_s": each.percentile(share) for share in (50, 90, 99)},
    }


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table
