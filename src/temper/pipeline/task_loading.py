"""From `file.py:name` or `package.module:name` to the task of that name."""

import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from temper.core.errors import TaskError
from temper.core.task import Task

FORM = "write file.py:name or package.module:name, where name is a Task, or a function without arguments returning one"


def load_task(reference: str) -> Task:
    """The task that `file.py:name` or `package.module:name` names; its `source` rebuilds it in another process.

    The folder of the file, or the current one for a module, is importable meanwhile. A file is run anew each time.

    Raises: TaskError naming the file, the line and its text if the code fails, or what the module holds instead.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise TaskError(f"{reference!r} names no task: {FORM}")
    is_file = place.endswith(".py")
    file = Path(place).expanduser().resolve()
    with _importable(file.parent if is_file else Path.cwd()):
        module = _file_module(file) if is_file else _named_module(place)
        task = _task(module, name, place)
    return replace(task, name=task.name or name, source=f"{file}:{name}" if is_file else reference)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _file_module(file: Path) -> ModuleType:
    if not file.is_file():
        raise TaskError(f"there is no file {file}; {FORM}")
    # The name holds the whole path, so that two files called task.py do not take each other's classes, and it is the
    # same in every process, so that these classes can be sent from one to another.
    name = f"temper_task_{file.stem}_{sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failure(f"{file} cannot be imported", error) from error
    return module


def _named_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise TaskError(
                f"there is no module {error.name!r}, seen from {Path.cwd()} and the installed packages; {FORM}"
            ) from error
        raise _failure(f"module {name} cannot be imported", error) from error


def _task(module: ModuleType, name: str, place: str) -> Task:
    if not hasattr(module, name):
        raise TaskError(f"{place} holds no {name!r}; {_offers(module)}")
    found = getattr(module, name)
    if isinstance(found, Task):
        return found
    if not callable(found) or inspect.isclass(found):
        kind = f"the class {name}" if inspect.isclass(found) else f"an object of type {type(found).__name__}"
        raise TaskError(f"{place}:{name} is {kind}, not a Task or a function that returns one; {_offers(module)}")
    needed = _needed_arguments(found)
    if needed:
        raise TaskError(
            f"{place}:{name} needs the arguments {', '.join(needed)}, and is called without any; give them defaults, "
            "or write a function around it"
        )
    try:
        task = found()
    except (Exception, SystemExit) as error:
        raise _failure(f"{place}:{name}() failed", error) from error
    if not isinstance(task, Task):
        raise TaskError(f"{place}:{name}() returned an object of type {type(task).__name__}; it must return a Task")
    return task


def _needed_arguments(function: Any) -> list[str]:
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind not in optional]


def _offers(module: ModuleType) -> str:
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    tasks = [name for name, value in public.items() if isinstance(value, Task)]
    functions = [
        f"{name}()"
        for name, value in public.items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not _needed_arguments(value)
    ]
    held = ", ".join((*tasks, *functions))
    return f"it holds {held}" if held else "it holds no Task and no function without arguments: write one there"


def _failure(what: str, error: BaseException) -> TaskError:
    """The error as one of the task, with the innermost line of the user's code; a TaskError keeps its kind."""
    kind = type(error) if isinstance(error, TaskError) else TaskError
    if isinstance(error, SyntaxError) and error.filename:
        text = (error.text or "").strip()
        return TaskError(f"{what}: {error.filename}:{error.lineno}: `{text}`: {error.msg}. Correct that line")
    remedy = "Correct that line, or what it calls"
    if isinstance(error, SystemExit):
        remedy = 'Put what runs the file as a script under `if __name__ == "__main__":`'
    elif isinstance(error, ImportError) and "relative import" in str(error):
        remedy = "A file with relative imports belongs to a package: name it as package.module:name"
    return kind(f"{what}: {_place(error)}{type(error).__name__}: {error}. {remedy}")


def _place(error: BaseException) -> str:
    """The innermost line that belongs neither to Python, nor to an installed package, nor to temper."""
    foreign = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")]
    foreign.append(Path(__file__).parents[1])
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.exists() and not any(file.is_relative_to(folder) for folder in foreign):
            return f"{file}:{frame.lineno}: `{frame.line}`: "
    return ""
