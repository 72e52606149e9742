"""What must hold for every plug, whatever it does: its form, its knobs, its JSON, its documentation."""

import dataclasses
import inspect
import json
import math
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

from temper.core import catalog
from temper.core.errors import PlugError, UsageError
from temper.core.knobs import Knob, Plug, Value, check_plug

P = TypeVar("P", bound=Plug)


def check(plug: type[Plug], kind: type[Plug]) -> None:
    """Assert everything that a class must keep to be a plug of this kind, such as `Technique`."""
    assert issubclass(plug, kind), f"{plug.__name__} is no {kind.__name__}"
    lacking = ", ".join(sorted(getattr(plug, "__abstractmethods__", ())))
    assert not inspect.isabstract(plug), f"{plug.__name__} lacks {lacking}"
    check_form(plug)
    check_name(plug, kind)
    check_documentation(plug)
    for knob in plug.knobs():
        check_knob(plug, knob)
    for instance in variants(plug):
        check_json(instance)
    check_unknown_knob(plug)


def variants(plug: type[P]) -> Iterator[P]:
    """The plug with its defaults, then with each knob, alone, at each other value that it may take.

    A knob without `among` is taken to its least and greatest value.
    """
    yield plug()
    for knob in plug.knobs():
        for value in _values(knob):
            if value != knob.default:
                yield plug(**{knob.name: value})


def check_form(plug: type[Plug]) -> None:
    """Assert that the class is a frozen dataclass whose fields are all knobs given by keyword."""
    name = plug.__name__
    assert "__dataclass_params__" in vars(plug), f"{name} must be written under @dataclass(frozen=True, kw_only=True)"
    fields = dataclasses.fields(plug)
    by_position = [field.name for field in fields if not field.kw_only]
    assert not by_position, f"{name}: {', '.join(by_position)} may be given by position; say kw_only=True"
    try:
        check_plug(plug)
    except PlugError as error:
        raise AssertionError(str(error)) from error
    try:
        instance = plug()
    except UsageError as error:
        raise AssertionError(f"{name}: its defaults are refused: {error}") from error
    for attribute in (*(field.name for field in fields), "anything"):
        try:
            setattr(instance, attribute, 1)
        except dataclasses.FrozenInstanceError:
            continue
        raise AssertionError(f"{name}.{attribute} can be changed; say frozen=True")


def check_name(plug: type[Plug], kind: type[Plug]) -> None:
    """Assert that the plug is named by its place, under which the catalog finds it."""
    if plug.__module__.startswith(f"{kind.folder}."):
        place = plug.__module__.removeprefix(f"{kind.folder}.")
        assert plug.name == place, f"{plug.__name__} is called {plug.name!r}, and its file stands at {place!r}"
        assert plug.name in catalog.names(kind), f"the catalog does not list {plug.name!r}"
    if plug.name in catalog.names(kind):
        found = catalog.get(kind, plug.name)
        assert found is plug, f"the catalog holds {found.__module__}.{found.__name__} under the name {plug.name!r}"


def check_documentation(plug: type[Plug]) -> None:
    """Assert docstrings, help for every knob and, where the kind of plug cites its source, a reference."""
    module = sys.modules[plug.__module__].__doc__ or ""
    assert module.strip(), f"{plug.__module__} has no docstring; its first line is what the catalog shows"
    own = plug.__doc__ or ""
    # Python writes the signature of a dataclass that says nothing into its docstring.
    written = own.strip() and not own.startswith(f"{plug.__name__}(")
    assert written, f"{plug.__name__} has no docstring"
    for knob in plug.knobs():
        assert knob.help, f"{plug.__name__}.{knob.name} has no help"
    if hasattr(plug, "reference"):
        assert plug.reference, f"{plug.__name__} has no reference: cite the paper, or say whose idea it is"


def check_knob(plug: type[Plug], knob: Knob) -> None:
    """Assert that default and bounds fit together, and that what the knob may not take is refused with UsageError."""
    where = f"{plug.__name__}.{knob.name}"
    if knob.among is not None:
        assert len(set(knob.among)) == len(knob.among), f"{where}: {knob.among} holds a value twice"
    for value in _values(knob):
        try:
            plug(**{knob.name: value})
        except UsageError as error:
            raise AssertionError(f"{where}: {value!r} is offered and refused: {error}") from error
    for value in _wrong(knob):
        try:
            plug(**{knob.name: value})
        except UsageError:
            continue
        raise AssertionError(f"{where} takes {value!r}, which it must refuse with UsageError")


def check_json(instance: Plug) -> None:
    """Assert that what is read back from the JSON form is equal, hashes equally and has the same JSON form."""
    written = json.dumps(instance.to_json(), allow_nan=False)
    again = type(instance).from_json(json.loads(written))
    assert again == instance, f"{instance} reads back from JSON as {again}"
    assert hash(again) == hash(instance), f"{instance} hashes differently when it was read back from JSON"
    assert json.dumps(again.to_json()) == written, f"{instance} has two JSON forms: {written} and {again.to_json()}"
    whole = {name: int(value) if _is_whole(value) else value for name, value in instance.to_json().items()}
    same = type(instance).from_json(whole)
    assert json.dumps(same.to_json()) == written, f"{instance} has another JSON form when 1.0 is given as 1"


def check_unknown_knob(plug: type[Plug]) -> None:
    """Assert that a knob that does not exist is refused with UsageError."""
    try:
        plug.from_json({"name": plug.name, "no_such_knob": 1})
    except UsageError:
        return
    raise AssertionError(f"{plug.__name__}.from_json takes a knob that does not exist")


def _values(knob: Knob) -> tuple[Value, ...]:
    if knob.among is not None:
        return knob.among
    if knob.type is bool:
        return (False, True)
    bounds = [bound for bound in (knob.low, knob.high) if bound is not None]
    return (*(knob.type(bound) for bound in bounds), knob.default)


def _wrong(knob: Knob) -> Iterator[Any]:
    """Values of another type, out of bounds or not offered."""
    yield None
    yield [knob.default]
    if knob.type is not str:
        yield str(knob.default)
    if knob.type is not bool:
        yield True
    if knob.type is float:
        yield from (math.nan, math.inf, -math.inf)
    if knob.among is not None and knob.type is not bool and (knob.low is None or knob.high is None):
        yield "no such value" if knob.type is str else max(knob.among) + 1  # type: ignore[operator]
    if knob.low is not None:
        yield knob.type(knob.low - 1)
    if knob.high is not None:
        yield knob.type(knob.high + 1)


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()
