"""temper catalog: the techniques, runtimes, searches and solvers that are installed."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from temper.cli._options import Json

if TYPE_CHECKING:
    from temper.core.knobs import Plug


def command(
    name: Annotated[str, typer.Argument(help="One of them, such as quantization.post_training, with its knobs.")] = "",
    as_json: Json = False,
) -> None:
    """List what temper can try, or the knobs of one technique, runtime, search or solver."""
    from temper.cli._tables import console
    from temper.core import catalog
    from temper.core.runtime import Runtime
    from temper.core.search import Search
    from temper.core.solver import Solver
    from temper.core.technique import Technique

    kinds = (Technique, Runtime, Search, Solver)
    if name:
        kind = next((each for each in kinds if name in catalog.names(each)), None)
        if kind is None:
            from temper.core.errors import UsageError

            raise UsageError(f"the catalog has no {name!r}; `temper catalog` lists what there is")
        _show(name, kind, as_json)
        return
    listing = {
        kind.__name__.lower(): {each: catalog.summary(kind, each) for each in catalog.names(kind)} for kind in kinds
    }
    from temper.core.target import multiplies
    from temper.hardware.precision import precisions

    arithmetic = precisions()
    if as_json:
        print(json.dumps({**listing, "precisions": arithmetic}))
        return
    screen = console()
    width = max(len(each) for names in listing.values() for each in names)
    for title, names in listing.items():
        screen.print(f"[bold]{title}[/bold]")
        for each, summary in names.items():
            screen.print(f"  {each:{width}}  {summary}", soft_wrap=True)
    screen.print(f"\none core of this machine: {multiplies(arithmetic)}", soft_wrap=True)


def _show(name: str, kind: "type[Plug]", as_json: bool) -> None:
    from temper.cli._tables import console
    from temper.core import catalog

    plug = catalog.get(kind, name)
    knobs = [
        {
            "name": each.name,
            "default": each.default,
            "among": each.among,
            "unit": each.unit,
            "help": each.help,
            "free": each.free,
        }
        for each in plug.knobs()
    ]
    if as_json:
        print(json.dumps({"name": name, "knobs": knobs}))
        return
    screen = console()
    screen.print(f"[bold]{name}[/bold]  {catalog.summary(kind, name)}")
    for each in plug.knobs():
        among = "" if each.among is None else f" of {', '.join(map(str, each.among))}"
        screen.print(f"  {each.name}={each.default}{among}  [dim]{each.unit} {each.help}[/dim]".rstrip())
