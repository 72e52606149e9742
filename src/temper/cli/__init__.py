"""The command line: one command a file, listed by their file names.

Each file holds a function `command` that typer turns into the command of the file's name. What a command needs is
imported when it runs, so that `temper --help` stays quick.
"""

import importlib
import json
import pkgutil
import sys

import typer

from temper.core.errors import TemperError

MISUSE = 2


def main() -> None:
    """Run the command line; every error that temper raises on purpose is one line and exit code 2."""
    try:
        _app()(standalone_mode=True)
    except TemperError as error:
        if "--json" in sys.argv:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        else:
            print(f"temper: {error}", file=sys.stderr)
        sys.exit(MISUSE)
    except KeyboardInterrupt:
        print("temper: stopped. What was done is kept: go on with --resume", file=sys.stderr)
        sys.exit(130)


def _app() -> typer.Typer:
    app = typer.Typer(
        help=(__import__("temper").__doc__ or "").removeprefix("temper: ").capitalize(),
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            app.command(module.name)(importlib.import_module(f"{__name__}.{module.name}").command)
    return app
