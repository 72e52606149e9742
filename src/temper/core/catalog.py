"""The catalog: the folders are the registry.

A file in `temper/techniques/<family>/`, `temper/runtimes/`, `temper/search/` or `temper/solvers/<problem>/` that holds
exactly one public plug is that plug, named by its place. Other distributions add theirs as entry points of the group
that bears the folder's name, such as `temper.techniques`. Listing reads file names and metadata; a plug is imported
when it is chosen.
"""

import ast
import importlib
import importlib.util
import inspect
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from temper.core.errors import PlugError, UsageError
from temper.core.knobs import Plug, check_plug

P = TypeVar("P", bound=Plug)


def names(kind: type[Plug]) -> tuple[str, ...]:
    """The names of all plugs of a kind (`Technique`, `Runtime`, `Search`, `Solver`), sorted, none of them imported."""
    return tuple(sorted({*_files(kind.folder), *_entries(kind.folder)}))


def get(kind: type[P], name: str) -> type[P]:
    """Import the plug of that kind and name.

    Raises: UsageError if there is none of that name; PlugError if its file breaks the contract.
    """
    entry = _entries(kind.folder).get(name)
    if entry is not None and name in _files(kind.folder):
        raise PlugError(f"entry point {entry.value} is called {name!r}, as a plug of temper's own is: rename it")
    if entry is not None:
        module, owner = entry.module, f"entry point {entry.value}"
    elif name in _files(kind.folder):
        module, owner = f"{kind.folder}.{name}", f"{kind.folder}.{name}"
    else:
        raise UsageError(f"no {kind.__name__.lower()} is called {name!r}; there are: {', '.join(names(kind))}")
    found = _public_plugs(kind, module)
    if len(found) != 1:
        held = ", ".join(each.__name__ for each in found) or "none"
        raise PlugError(f"{owner} must hold exactly one public {kind.__name__}, and holds {held}")
    plug = found[0]
    plug.name = name
    check_plug(plug)
    return plug


def summary(kind: type[Plug], name: str) -> str:
    """The first line of what the plug says of itself, read from its file: the plug's module is not imported.

    To find the file of an entry point, Python imports the packages that the module lies in.
    """
    entry = _entries(kind.folder).get(name)
    if entry is not None:
        spec = importlib.util.find_spec(entry.module)
        file = Path(spec.origin) if spec and spec.origin else None
    else:
        file = _files(kind.folder).get(name)
    if file is None:
        return ""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0]


@cache
def _files(folder: str) -> dict[str, Path]:
    package = importlib.util.find_spec(folder)
    if package is None or not package.submodule_search_locations:
        return {}
    root = Path(next(iter(package.submodule_search_locations)))
    found = (file for file in root.rglob("*.py") if not file.name.startswith("_"))
    return {".".join(file.relative_to(root).with_suffix("").parts): file for file in found}


@cache
def _entries(folder: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=folder)}


def _public_plugs(kind: type[P], module_name: str) -> list[type[P]]:
    module = importlib.import_module(module_name)
    classes = (value for name, value in vars(module).items() if not name.startswith("_") and inspect.isclass(value))
    return [each for each in classes if issubclass(each, kind) and each.__module__ == module.__name__]
