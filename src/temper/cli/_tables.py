"""How measurements are shown in a terminal."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from temper.core.measurement import megabytes

if TYPE_CHECKING:
    from temper.core.measurement import Measurement
    from temper.core.proof import Judgement, Row

ROLES = {"eager": "torch eager", "baseline": "best float runtime", "chosen": "chosen artifact"}
WIDTH = max(map(len, ROLES.values()))
COLORS = {"ACCEPT": "green", "REJECT": "red", "INCONCLUSIVE": "yellow"}


def console(*, progress: bool = False) -> Console:
    """Standard output, or standard error for progress; as wide as the terminal, or 120 where there is none."""
    stream = sys.stderr if progress else sys.stdout
    return Console(
        file=stream, highlight=False, emoji=False, soft_wrap=progress, width=None if stream.isatty() else 120
    )


def rows_table(rows: "Iterable[Row]", metric: str) -> Table:
    """The contestants of a proof: quality, speed, size and memory, with intervals."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", escape(metric), "drop, 95 % bound", "p50", "latency ratio", "size", "peak memory"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in rows:
        of = row.measurements
        table.add_row(
            ROLES[row.role],
            interval(of["score"], 4),
            f"{of['drop'].value:+.4f} ≤ {of['drop'].upper:+.4f}",
            milliseconds(of["latency_s"]),
            interval(of["latency_ratio"], 3),
            megabytes(of["size_bytes"].value),
            megabytes(of["memory_bytes"].value),
        )
    return table


def recipe_lines(rows: "Iterable[Row]") -> list[str]:
    """What each contestant is."""
    return [f"[dim]{ROLES[row.role]:{WIDTH}}[/dim] {escape(row.title)}" for row in rows]


def judgement_lines(judgements: "Iterable[Judgement]") -> list[str]:
    """A verdict a line, with its reason."""
    return [
        f"[{COLORS[each.verdict.value]} bold]{each.verdict.value}[/]  {escape(each.limit)}: {escape(each.reason)}"
        for each in judgements
    ]


def interval(measurement: "Measurement", digits: int) -> str:
    of = measurement
    return f"{of.value:.{digits}f} ({of.lower:.{digits}f}–{of.upper:.{digits}f})"


def milliseconds(measurement: "Measurement") -> str:
    return f"{measurement.value * 1e3:.3f} ms"
