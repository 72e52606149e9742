"""Options that several commands share, each written once."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of every contestant.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load artifacts of native code, which can do all that you can do.")
]
Length = Annotated[
    int | None, typer.Option(min=1, help="Length of every input, where it is dynamic; else lengths as they come.")
]
Batch = Annotated[int, typer.Option(min=1, help="Examples a call of every contestant.")]
