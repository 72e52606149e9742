"""The house rules that can be counted: sizes, names, and calls that run what they read."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "temper"
FILES = sorted(SOURCE.rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 400, 60
VAGUE_FILES = re.compile(r"_?(utils?|helpers?|misc|common|base|managers?)")
VAGUE_CLASSES = re.compile(r"_?Base[A-Z]\w*|\w*(Manager|Helper|Utils?)")
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.package.PackageImporter", "os.system", "yaml.load"}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    """The name that is called, such as `torch.load`; empty for anything computed."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 50


@each_file
def test_sizes(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{file} has {lines} lines; split it along a noun"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            size = node.end_lineno - node.lineno + 1
            assert size <= FUNCTION_LINES, f"{file}:{node.lineno}: {node.name} has {size} lines"


@each_file
def test_names(file: Path) -> None:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    vague = [part for part in parts if VAGUE_FILES.fullmatch(part)]
    vague += [
        node.name
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ClassDef) and VAGUE_CLASSES.fullmatch(node.name)
    ]
    assert not vague, f"{file}: {', '.join(vague)} says nothing; name it after what it is"


@each_file
def test_nothing_is_left_to_do(file: Path) -> None:
    marks = re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b", file.read_text(encoding="utf-8"))
    assert not marks, f"{file} holds {marks}"


@each_file
def test_nothing_that_is_read_is_run(file: Path) -> None:
    modules = {name for name in imported(file) if name.partition(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS}
    calls = {dotted(node.func) for node in ast.walk(tree(file)) if isinstance(node, ast.Call)} & UNSAFE_CALLS
    assert not modules, f"{file} imports {modules}"
    assert not calls, f"{file} calls {calls}"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            denied = isinstance(node.value, ast.Constant) and node.value.value is False
            assert denied, f"{file}:{node.value.lineno} allows pickle"


@each_file
def test_every_module_and_public_class_says_what_it_is(file: Path) -> None:
    module = tree(file)
    if not module.body:
        return
    assert ast.get_docstring(module), f"{file} has no docstring"
    silent = [
        node.name
        for node in module.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not silent, f"{file}: {', '.join(silent)} has no docstring"
