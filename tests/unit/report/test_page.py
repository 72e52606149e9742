import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from temper.core.journal import Journal
from temper.report.page import write_report

JournalOf = Callable[[str], Journal]
SECTIONS = ["verdict", "measured", "frontier", "trials", "proof", "data", "model", "environment", "reproduce"]
RUNS = ["proven", "stopped", "nothing measured", "only failures", "own model", "failures", "size", "memory"]
RUNS += ["unproven", "rejected", "hostile"]
BLOCKS = {"section", "p", "div", "li", "td", "th", "dt", "dd", "h2", "h3", "small"}
VOID = {"meta", "br", "col"}


class Reader(HTMLParser):
    """Checks that every element is closed, and keeps what the tests look at."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.identities: list[str] = []
        self.headings: list[int] = []
        self.loads: list[str] = []
        self.elements: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.text += " " if tag in BLOCKS else ""
        given = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if identity := given.get("id"):
            self.identities.append(identity)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def page_of(journal: Journal, folder: Path) -> tuple[str, Reader]:
    file = folder / "report.html"
    write_report(journal, file)
    page = file.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    reader.text = " ".join(reader.text.split())
    return page, reader


@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_a_whole_page(name: str, journal_of: JournalOf, tmp_path: Path) -> None:
    page, reader = page_of(journal_of(name), tmp_path)
    assert [each for each in reader.identities if each != "frontier-chart"] == SECTIONS
    assert len(set(reader.identities)) == len(reader.identities)
    assert reader.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(reader.headings, reader.headings[1:]))
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not any(word in reader.text for word in ("nan", "inf ", "None", "Measurement("))


@pytest.mark.parametrize("name", ["proven", "hostile"])
def test_nothing_is_loaded_from_elsewhere(name: str, journal_of: JournalOf, tmp_path: Path) -> None:
    page, reader = page_of(journal_of(name), tmp_path)
    assert reader.loads == []
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(reader.elements)
    styles = "".join(re.findall("<style>(.*?)</style>", page, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    assert "default-src 'none'" in page


def test_text_of_the_user_is_escaped(journal_of: JournalOf, tmp_path: Path) -> None:
    page, reader = page_of(journal_of("hostile"), tmp_path)
    assert "<script>alert" not in page
    assert "<i>score" not in page
    assert "<b>end" not in page
    assert "<script>alert('1')</script>" in reader.text
    assert "</main><img src=http://x.test/y.png>" in reader.text
    assert reader.elements.count("script") == 3


def test_the_sentence_says_how_much_faster_smaller_and_worse(journal_of: JournalOf, tmp_path: Path) -> None:
    _, reader = page_of(journal_of("proven"), tmp_path)
    assert (
        "The optimized model runs 1.67× faster (1.62× to 1.72×) than your own model on its best float runtime here, "
        "onnxruntime; it is 70 % smaller and lost 0.20 percentage points of accuracy, at most 0.60 with 95 % "
        "confidence, on 1,200 examples that the search never saw."
    ) in reader.text
    assert "Loses less than 1 percentage point of accuracy" in reader.text
    assert "Energy: unavailable" in reader.text
    assert "pip install 'temper-ml[openvino]'" in reader.text
    assert "13 int8, 7 float32" in reader.text
    assert 'model = load("artifact")' in reader.text
    assert "temper optimize digits.py:task --out run --trials 4 --seed 3" in reader.text


def test_without_a_proof_nothing_is_claimed(journal_of: JournalOf, tmp_path: Path) -> None:
    _, reader = page_of(journal_of("stopped"), tmp_path)
    assert "NO PROOF This run stopped before it had a proof, so nothing is proven: it made 4 trials" in reader.text
    assert "its best candidate so far is 1.67× faster (1.62× to 1.72×)" in reader.text
    assert "--resume" in reader.text
    assert "Begun and not ended when the run stopped: trial 5 (batch norm fusion, then" in reader.text
    assert "ACCEPT" not in reader.text


def test_a_journal_with_nothing_in_it(tmp_path: Path) -> None:
    _, reader = page_of(Journal(tmp_path / "empty.sqlite"), tmp_path)
    assert "NO PROOF This run stopped before it had a proof: 0 trials ended" in reader.text


@pytest.mark.parametrize("name", ["nothing measured", "only failures"])
def test_without_a_chart_there_is_no_library(name: str, journal_of: JournalOf, tmp_path: Path) -> None:
    page, reader = page_of(journal_of(name), tmp_path)
    if name == "nothing measured":
        assert len(page) < 40_000
        assert "there is nothing to draw" in reader.text


def test_the_unchanged_model_ships_and_says_why(journal_of: JournalOf, tmp_path: Path) -> None:
    _, reader = page_of(journal_of("own model"), tmp_path)
    assert "Your own model ships unchanged, on its best float runtime here, onnxruntime" in reader.text
    assert "because the first candidate is INCONCLUSIVE." in reader.text
    assert "Best float runtime, which ships" in reader.text
    assert "NOT TESTED Batch norm fusion, then post training quantization (ranges: mse)" in reader.text


def test_failures_say_why_and_long_reasons_fold(journal_of: JournalOf, tmp_path: Path) -> None:
    page, reader = page_of(journal_of("failures"), tmp_path)
    for words in ("failed", "dropped", "interrupted", "outside of the limits", "over the limit in drop", "no bound"):
        assert words in reader.text
    assert "<details" in page
    assert "Beyond the edges of the chart: trial 2" in reader.text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("size", "The optimized model is 70 % smaller than your own model"),
        ("memory", "The optimized model needs 10 % less memory than your own model"),
    ],
)
def test_the_minimized_quantity_comes_first(name: str, sentence: str, journal_of: JournalOf, tmp_path: Path) -> None:
    _, reader = page_of(journal_of(name), tmp_path)
    assert sentence in reader.text
    assert "it runs 1.67× faster (1.62× to 1.72×)" in reader.text
    assert "in MB" in reader.text


@pytest.mark.parametrize(("name", "badge"), [("unproven", "INCONCLUSIVE"), ("rejected", "REJECT")])
def test_doubt_is_said_at_once(name: str, badge: str, journal_of: JournalOf, tmp_path: Path) -> None:
    _, reader = page_of(journal_of(name), tmp_path)
    assert f"Verdict {badge} The optimized model" in reader.text
    assert "; not every limit is proven." in reader.text


def test_the_same_journal_gives_the_same_page(journal_of: JournalOf, tmp_path: Path) -> None:
    journal = journal_of("proven")
    before = list(journal.facts())
    assert page_of(journal, tmp_path)[0] == page_of(journal, tmp_path)[0]
    assert list(journal.facts()) == before


@pytest.mark.parametrize("name", ["proven", "failures", "size"])
def test_the_chart_holds_every_trial_that_fits(name: str, journal_of: JournalOf, tmp_path: Path) -> None:
    page, _ = page_of(journal_of(name), tmp_path)
    drawn = re.search(r'Plotly\.newPlot\("frontier-chart", (.*), \{"displayModeBar"', page)
    assert drawn is not None
    data, layout = json.JSONDecoder(), json.JSONDecoder()
    traces, end = data.raw_decode(drawn.group(1))
    shape, _ = layout.raw_decode(drawn.group(1)[end + 2 :])
    marks = sum(len(trace["x"]) for trace in traces if trace["mode"] == "markers")
    assert marks == {"proven": 3, "failures": 5, "size": 4}[name]
    assert shape["shapes"][0]["y0"] == 0.01
    assert {"<b>baseline</b>", "<b>ships</b>"} <= {each["text"] for each in shape["annotations"]}
