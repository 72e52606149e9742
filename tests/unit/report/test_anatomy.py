"""What the section on layers says and draws, for explanations that are made up."""

import re
from pathlib import Path

from temper.core.explanation import Explanation, Kernel, Layer, Quantized
from temper.core.journal import Journal
from temper.pipeline.advice import advise
from temper.report import page as page_of
from temper.report.anatomy import anatomy
from temper.report.findings import Findings


def kernel(operator: str, precision: str, microseconds: float, *covers: str) -> Kernel:
    return Kernel(name=operator, operator=operator, precision=precision, seconds=microseconds * 1e-6, covers=covers)


def rounded(relative_error: float) -> Quantized:
    return Quantized(
        original_range=(-1, 2.5),
        scale_factor=(0.01, 0.02),
        quantization_error=relative_error,
        relative_error=relative_error,
    )


def layer(name: str, seconds: float | None, precision: str | None, sensitivity: float | None = None) -> Layer:
    quantized = None if sensitivity is None else rounded(3e-5)
    return Layer(
        name=name,
        operator="linear",
        shape=(64, 32),
        node=name,
        seconds=seconds,
        precision=precision,
        sensitivity=sensitivity,
        weight=quantized,
        input=quantized,
    )


KERNELS = (
    kernel("MatMul", "int8", 60, "first"),
    kernel("Softmax", "float32", 25),
    kernel("Softmax", "float32", 5),
    kernel("MatMul", "int8", 10, "second"),
)
LAYERS = (
    layer("first", 60e-6, "int8", 1e-3),
    layer("second", 10e-6, "int8", 1e-9),
    layer("<third>", None, None),
)


def drawn(explanation: Explanation, folder: Path) -> str:
    journal = Journal(folder / "journal.sqlite")
    journal.note(explanation=explanation.to_json())
    found = anatomy(Findings.of(journal))
    assert found is not None
    return found


def rows(page: str) -> list[list[str]]:
    """The cells of the table's body, as markup."""
    body = page[page.index("<tbody") :]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", each, re.DOTALL) for each in re.findall("<tr.*?</tr>", body)]


def text(markup: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", markup).split())


def bar(cell: str) -> tuple[str, float]:
    """The kind of a bar, and how much of it is filled, in percent."""
    found = re.search(r'class="fill (\w+)" style="width: ([\d.]+)%"', cell)
    assert found is not None
    return found[1], float(found[2])


def test_layers_stand_with_time_precision_and_loss(tmp_path: Path) -> None:
    page = drawn(Explanation(call_s=1.2e-4, kernels=KERNELS, layers=LAYERS), tmp_path)
    first, second, *_ = rows(page)
    assert "One call takes 0.120 ms." in text(page)
    assert "its bars are logarithmic" in text(page)
    assert [text(each) for each in first] == [
        "first linear 64 × 32",
        "60.0%",
        "int8",
        "1.0e−3",
        "−1.0 to 2.5 8 bits, error 3.0e−5",
        "−1.0 to 2.5 8 bits, error 3.0e−5",
        "0.02",
    ]
    # The slowest row is full, the others are in proportion; sensitivities go from 1e-9 to 1.
    assert (bar(first[1]), bar(second[1])) == (("integer", 100.0), ("integer", 16.7))
    assert (bar(first[3]), bar(second[3])) == (("sensitivity", 66.7), ("sensitivity", 0.0))


def test_every_kind_of_bar_has_a_colour(tmp_path: Path) -> None:
    page = drawn(Explanation(call_s=1.2e-4, kernels=KERNELS, layers=LAYERS), tmp_path)
    kinds = set(re.findall(r'class="fill (\w+)"', page))
    assert len(kinds) == 3
    style = (Path(page_of.__file__).parent / "page.css").read_text(encoding="utf-8")
    assert all(f".fill.{kind} {{ background: " in style for kind in kinds)


def test_what_is_no_layer_stands_below_by_operator(tmp_path: Path) -> None:
    *_, last = rows(drawn(Explanation(call_s=1.2e-4, kernels=KERNELS, layers=LAYERS), tmp_path))
    assert [text(each) for each in last] == ["2 × Softmax", "30.0%", "float32", "–", "–", "–", "–"]
    assert bar(last[1]) == ("float", 50.0)


def test_a_layer_without_a_time_has_no_bar_and_its_name_is_escaped(tmp_path: Path) -> None:
    page = drawn(Explanation(call_s=1.2e-4, kernels=KERNELS, layers=LAYERS), tmp_path)
    third = rows(page)[2]
    assert [text(each) for each in third[1:]] == ["–"] * 6
    assert "bar" not in third[1]
    assert "&lt;third&gt;" in third[0]


def test_floats_between_integers_are_named_with_the_remedy(tmp_path: Path) -> None:
    advice = advise(1e-4, KERNELS, LAYERS[:2])
    page = text(drawn(Explanation(call_s=1e-4, kernels=KERNELS, layers=LAYERS, advice=advice), tmp_path))
    assert "Speed, 30%: 2 float operators stand between integer ones, the slowest of them Softmax" in page
    assert "Replace them by operators that the runtime has in integers" in page
    assert "Nothing stands out" not in page
    only_integers = (KERNELS[0], KERNELS[-1])
    sound = Explanation(call_s=7e-5, kernels=only_integers, layers=(), advice=advise(7e-5, only_integers, ()))
    (tmp_path / "sound").mkdir()
    assert "Nothing stands out that would be worth changing." in text(drawn(sound, tmp_path / "sound"))


def test_without_a_profile_the_reason_and_the_layers_remain(tmp_path: Path) -> None:
    layers = (layer("first", None, None, 1e-3),)
    page = drawn(Explanation(call_s=1e-4, kernels=(), layers=layers, untimed="it keeps no clock"), tmp_path)
    (only,) = rows(page)
    assert "There are no shares of the time: it keeps no clock." in text(page)
    assert [text(each) for each in only[1:4]] == ["–", "–", "1.0e−3"]


def test_a_run_without_an_explanation_has_no_section(tmp_path: Path) -> None:
    assert anatomy(Findings.of(Journal(tmp_path / "journal.sqlite"))) is None
