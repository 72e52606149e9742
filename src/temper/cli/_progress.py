"""Progress on standard error: lines of what happened, and a clock at the bottom in a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape

from temper.cli._tables import console


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that tells a person one line at a time, stamped with the minutes since the start."""
    screen = console(progress=True)
    began = time.monotonic()

    def stamp() -> str:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        return f"{minutes:d}:{seconds:02d}"

    if not screen.is_terminal:
        yield lambda line: screen.print(f"{stamp()} {line}", markup=False)
        return
    with screen.status("starting") as status:

        def tell(line: str) -> None:
            screen.print(f"[dim]{stamp()}[/dim] ", end="")
            screen.print(line, markup=False)
            status.update(escape(line if len(line) < screen.width - 6 else f"{line[: screen.width - 8]}…"))

        yield tell
