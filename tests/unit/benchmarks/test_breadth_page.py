"""What the breadth table says, for rows that are made up."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import breadth_page

HOST = {"processor": "a chip", "cores": 2, "features": ["avx2"]}


def contestant(column: str, ratio: float, *, kept: bool = True, spread: float = 0.01) -> dict[str, Any]:
    measured = {"p50_s": ratio / 1000, "score": 0.9, "drop": 0.0, "drop_bound": 0.001, "kept": kept}
    interval = [ratio, ratio * (1 - spread), ratio * (1 + spread)]
    return {"column": column, "name": f"{column}: its way", "variant": "its way", "ratio": interval, **measured}


def failed(column: str) -> dict[str, Any]:
    return {"column": column, "name": f"{column}: its way", "variant": "its way", "failure": "no such kernel"}


def entry(*contestants: dict[str, Any]) -> dict[str, Any]:
    return {"contestants": [contestant("temper", 1.0), *contestants]}


@pytest.mark.parametrize(
    ("ratio", "spread", "word"),
    [
        (1.1, 0.01, "faster"),
        (1.1, 0.2, "level"),  # it may be luck
        (1.0, 0.01, "level"),
        (0.96, 0.01, "level"),
        (0.94, 0.01, "slower"),
        (0.94, 0.2, "slower"),
    ],
)
def test_the_verdict_is_of_the_best_peer_that_keeps_the_quality(ratio: float, spread: float, word: str) -> None:
    best = contestant("OpenVINO", ratio, spread=spread)
    others = (contestant("torch eager", 3.0), contestant("torchao PT2E", 0.5, kept=False), failed("torch.compile"))
    name, text, found = breadth_page.verdict(entry(*others, best))
    assert (name, found) == ("OpenVINO: its way", word)
    assert text.startswith(f"{1 / ratio:.3f} (")


def test_the_ratio_is_turned_around_with_its_interval() -> None:
    _, text, _ = breadth_page.verdict(entry(contestant("OpenVINO", 2.0, spread=0.5)))
    assert text == "0.500 (0.333 to 1.000)"


def test_an_artifact_that_misses_the_quality_has_not_won() -> None:
    missed = {"contestants": [contestant("temper", 1.0, kept=False), contestant("OpenVINO", 2.0)]}
    assert breadth_page.verdict(missed)[2] == "misses the quality"


@pytest.mark.parametrize(
    ("processor", "features", "words"),
    [
        ("AMD EPYC 9R14", ["avx2", "avx512_vnni"], "AMD VNNI"),
        ("Intel(R) Xeon(R) Processor", ["avx512_vnni", "amx_int8"], "Intel AMX"),
        ("Neoverse", [], "Neoverse"),
    ],
)
def test_rows_say_which_machine_they_are_from(processor: str, features: list[str], words: str) -> None:
    assert breadth_page.machine({"environment": {"processor": processor, "features": features}}) == words


def test_temper_itself_is_no_peer() -> None:
    alone = entry({**contestant("", 0.5), "name": "temper again (noise)"})
    assert breadth_page.verdict(alone)[2] == "no comparison"


def row(*contestants: dict[str, Any]) -> dict[str, Any]:
    about = {"date": "2026-01-01", "environment": HOST, "versions": {"torch": "2"}}
    about |= {"budget": "1m", "rounds": 3, "verdict": "ACCEPT", "reason": "it is so"}
    return {
        "title": "A model",
        "metric": "accuracy",
        "examples": 10,
        "threads": {"1": {**about, **entry(*contestants)}},
    }


def test_the_page_shows_the_fastest_honest_way_strikes_out_the_rest_and_says_what_failed(tmp_path: Path) -> None:
    contestants = (
        contestant("OpenVINO", 1.5),
        contestant("OpenVINO", 1.2),
        contestant("OpenVINO", 0.7, kept=False),
        contestant("torchao PT2E", 0.8, kept=False),
        failed("torch.compile"),
    )
    (tmp_path / "one.json").write_text(json.dumps(row(*contestants)), encoding="utf-8")
    page = breadth_page.page(tmp_path, ["one", "not made yet"])
    line = next(line for line in page.splitlines() if line.startswith("| A model"))
    cells = dict(zip(breadth_page.COLUMNS, (cell.strip() for cell in line.split("|")[5:])))
    assert (cells["OpenVINO"], cells["torchao PT2E"], cells["torch.compile"]) == ("1.20", "~~0.80~~", "fails")
    assert cells["torch eager"] == "–"
    assert "no such kernel" in page


def test_the_summary_takes_the_place_of_the_one_before_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    contestants = (contestant("OpenVINO", 1.5), contestant("torch eager", 3.0), contestant("torchao PT2E", 1.25))
    (tmp_path / "one.json").write_text(json.dumps(row(*contestants)), encoding="utf-8")
    before = "# Us\n\n<!-- results -->\n\nold\n\n<!-- /results -->\n\nMore.\n"
    after = breadth_page.with_summary(before, tmp_path, ["one", "not made yet"])
    assert after.startswith("# Us\n\n<!-- results -->\n\nTimes")
    assert after.endswith("<!-- /results -->\n\nMore.\n")
    assert "old" not in after
    line = next(line for line in after.splitlines() if line.startswith("| A model"))
    assert line == "| A model | 1.50 | – | – | 1.25 | +0.0000 of accuracy | 0.800 faster | – |"
    assert breadth_page.with_summary(after, tmp_path, ["one"]) == after
    with pytest.raises(ValueError, match="no place for results"):
        breadth_page.with_summary("# Us", tmp_path, ["one"])


def test_the_summary_shows_both_numbers_of_threads_and_what_is_not_proven(tmp_path: Path) -> None:
    one, two = row(contestant("OpenVINO", 1.25)), row(contestant("OpenVINO", 0.8))
    document = {**one, "threads": {"1": {**one["threads"]["1"], "verdict": "INCONCLUSIVE"}, "2": two["threads"]["1"]}}
    (tmp_path / "one.json").write_text(json.dumps(document), encoding="utf-8")
    after = breadth_page.with_summary(f"{breadth_page.BEGIN}{breadth_page.END}", tmp_path, ["one"])
    assert "| +0.0000 of accuracy (not proven) | 0.800 faster | 1.250 slower |" in after
