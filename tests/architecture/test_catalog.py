"""The folders are the registry: one plug a file, and other distributions add theirs by entry point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from temper.core import catalog
from temper.core.errors import PlugError, UsageError
from temper.core.knobs import Plug
from temper.core.runtime import Runtime
from temper.core.search import Search
from temper.core.solver import Solver
from temper.core.technique import Technique

SOURCE = Path(__file__).parents[2] / "src"
KINDS = (Technique, Runtime, Search, Solver)

PLUG = '''"""Propose nothing, from another distribution."""

from dataclasses import dataclass

from temper.core.search import Search


@dataclass(frozen=True, kw_only=True)
class {name}(Search):
    """Propose nothing."""

    reference = "made up"

    def propose(self, space, history):
        return None
'''
ASK = """
from temper.core import catalog
from temper.core.search import Search

assert "lazy" in catalog.names(Search), catalog.names(Search)
assert catalog.summary(Search, "lazy") == "Propose nothing, from another distribution."
import sys
assert "elsewhere.lazy" not in sys.modules
found = catalog.get(Search, "lazy")
assert (found.__name__, found.name, found().to_json()) == ("Lazy", "lazy", {"name": "lazy"}), found
from temper.testing import plugs
plugs.check(found, Search)
"""


def files(kind: type[Plug]) -> set[str]:
    folder = SOURCE.joinpath(*kind.folder.split("."))
    plugs = (file for file in folder.rglob("*.py") if not file.name.startswith("_"))
    return {".".join(file.relative_to(folder).with_suffix("").parts) for file in plugs}


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_a_plug(kind: type[Plug]) -> None:
    assert files(kind) <= set(catalog.names(kind))
    assert files(kind)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in sorted(files(kind))])
def test_every_file_holds_exactly_one_public_plug(kind: type[Plug], name: str) -> None:
    plug = catalog.get(kind, name)
    assert plug.name == name
    assert plug.__module__ == f"{kind.folder}.{name}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_answered_with_the_known_ones(kind: type[Plug]) -> None:
    with pytest.raises(UsageError, match="no_such") as caught:
        catalog.get(kind, "no_such")
    assert all(name in str(caught.value) for name in catalog.names(kind))


def distribution(folder: Path, source: str) -> None:
    """A distribution as an installer leaves it, whose module `elsewhere.lazy` is the search `lazy`."""
    package = folder / "elsewhere"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "lazy.py").write_text(source, encoding="utf-8")
    facts = folder / "elsewhere-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n", encoding="utf-8")
    (facts / "entry_points.txt").write_text("[temper.search]\nlazy = elsewhere.lazy\n", encoding="utf-8")


def test_plugs_of_other_distributions_are_found(tmp_path: Path) -> None:
    distribution(tmp_path, PLUG.format(name="Lazy"))
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", ["", PLUG.format(name="One") + PLUG.format(name="Two"), PLUG.format(name="_Hidden")])
def test_a_file_with_another_number_of_plugs_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, source)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("elsewhere", "elsewhere.lazy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(catalog, "_entries", catalog._entries.__wrapped__)
    with pytest.raises(PlugError, match="exactly one public Search"):
        catalog.get(Search, "lazy")
