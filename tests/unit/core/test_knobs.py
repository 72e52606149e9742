from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from temper.core.errors import PlugError, UsageError
from temper.core.knobs import Plug, check_plug, knob


@dataclass(frozen=True, kw_only=True)
class Saw(Plug):
    folder: ClassVar[str] = "tests"
    bits: int = knob(8, among=(2, 4, 8), unit="bit", help="how fine")
    ratio: float = knob(0.5, low=0.0, high=1.0)
    fast: bool = knob(True)
    mode: str = knob("a", among=("a", "b"))


def test_a_knob_is_written_once() -> None:
    bits = Saw.knobs()[0]
    assert (bits.name, bits.type, bits.default, bits.among, bits.unit, bits.help) == (
        ("bits", int, 8, (2, 4, 8), "bit", "how fine")
    )
    assert Saw(bits=4).to_json() == {"name": Saw.name, "bits": 4, "ratio": 0.5, "fast": True, "mode": "a"}
    assert Saw.from_json(Saw(bits=4).to_json()) == Saw(bits=4)
    assert str(Saw(bits=4)).endswith("(bits=4)")
    assert "(" not in str(Saw())


def test_equal_plugs_have_one_json_form() -> None:
    assert repr(Saw(ratio=1).to_json()) == repr(Saw(ratio=1.0).to_json())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": 3}, "is not one of 2, 4, 8"),
        ({"bits": 4.0}, "is not of type int"),
        ({"bits": True}, "is not of type int"),
        ({"bits": "4"}, "is not of type int"),
        ({"ratio": 1.5}, "over the greatest value, 1"),
        ({"ratio": -0.1}, "under the least value, 0"),
        ({"ratio": float("nan")}, "is not a finite number"),
        ({"fast": 1}, "is not of type bool"),
        ({"mode": None}, "is not of type str"),
        ({"teeth": 3}, "has no knob teeth; its knobs are: bits, ratio, fast, mode"),
    ],
)
def test_values_that_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Saw.from_json(fields)


def test_a_field_that_is_no_knob() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Loose(Plug):
        folder: ClassVar[str] = "tests"
        teeth: list[int] = field(default_factory=list)

    with pytest.raises(PlugError, match="'teeth' must be written as knob"):
        check_plug(Loose)
