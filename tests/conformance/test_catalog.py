"""Every technique, runtime, search and solver of the catalog keeps its contract: a new file is tested unasked."""

import importlib.util

import pytest

from temper.core import catalog
from temper.core.errors import MissingExtra
from temper.core.knobs import Plug
from temper.core.runtime import Runtime
from temper.core.search import Search
from temper.core.solver import Solver
from temper.core.technique import Technique
from temper.testing import runtimes, searches, solvers, techniques


@pytest.mark.parametrize("name", catalog.names(Technique))
def test_technique(name: str) -> None:
    try:
        techniques.check(catalog.get(Technique, name))
    except MissingExtra as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", catalog.names(Runtime))
def test_runtime(name: str) -> None:
    runtime = catalog.get(Runtime, name)
    try:
        runtime.require()
    except MissingExtra as error:
        pytest.skip(str(error))
    runtimes.check(runtime)


@pytest.mark.parametrize("name", catalog.names(Search))
def test_search(name: str) -> None:
    searches.check(catalog.get(Search, name))


@pytest.mark.parametrize("name", catalog.names(Solver))
def test_solver(name: str) -> None:
    solvers.check(catalog.get(Solver, name))


@pytest.mark.parametrize("name", catalog.names(Runtime))
def test_missing_package_is_said_with_the_command_that_adds_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = catalog.get(Runtime, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(MissingExtra, match=r"pip install '.+'") as caught:
        runtime.require()
    assert runtime.package in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", [Technique, Runtime, Search, Solver])
def test_every_kind_has_plugs_with_a_summary(kind: type[Plug]) -> None:
    names = catalog.names(kind)
    assert names
    assert all(catalog.summary(kind, name) for name in names)
