"""The straight line, from a task to an artifact that stands on its own."""

import json
from pathlib import Path

import numpy as np
import pytest

from temper import Artifact, load
from temper.core.journal import Journal
from temper.core.proof import Proof, Verdict
from temper.pipeline.optimize import Result
from tests.end_to_end.conftest import hiding, python, script, temper

PROOF = 600


def test_what_comes_back(run: Result, task_file: Path) -> None:
    assert run.proof.verdict is Verdict.ACCEPT
    assert run.proof.examples == PROOF
    assert run.proof.task == "clusters"
    assert [row.role for row in run.proof.rows] == ["baseline", "chosen"]
    chosen, baseline = run.proof.row("chosen"), run.proof.row("baseline")
    assert "quantization" in chosen.title
    assert "quantization" not in baseline.title
    assert chosen.measurements["size_bytes"].value < 0.5 * baseline.measurements["size_bytes"].value
    assert chosen.measurements["drop"].upper <= run.proof.goal.max_drop
    assert run.artifact.recipe == chosen.recipe
    assert run.frontier[0].recipe.to_json() == baseline.recipe
    assert (run.folder / "baseline" / "manifest.json").is_file()
    assert not (run.folder / "work").exists()


def test_the_journal_holds_what_the_report_needs(run: Result, task_file: Path) -> None:
    journal = Journal(run.folder / "journal.sqlite")
    assert [trial.outcome for trial in journal.trials()] == ["measured"] * 2
    assert f"temper optimize {task_file}:task" in journal.fact("command")
    assert Proof.from_json(journal.fact("proof")) == run.proof
    assert journal.fact("proof") == json.loads((run.artifact.folder / "proof.json").read_text(encoding="utf-8"))
    assert {"target", "seed", "goal", "fingerprint", "task", "missing"} <= journal.facts().keys()
    journal.close()


def test_loaded_outputs_are_those_of_the_proof(run: Result, task_file: Path) -> None:
    points, predictions = _points(task_file), _predictions(run)
    model = load(run.folder)
    assert np.array_equal(np.concatenate([model(points[i : i + 32]) for i in range(0, PROOF, 32)]), predictions)
    assert model.schema == Artifact.open(run.artifact.folder).schema


def test_loading_needs_neither_torch_nor_the_training_side(run: Result, task_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "points.npy", _points(task_file))
    text = script(
        f"""
        import sys
        import numpy as np
        import temper

        model = temper.load({str(run.folder)!r})
        points = np.load("points.npy")
        outputs = [model(points[start : start + 32]) for start in range(0, len(points), 32)]
        np.save("outputs.npy", np.concatenate(outputs))
        assert not {{"torch", "onnx", "scipy", "sklearn"}} & sys.modules.keys()
        """
    )
    done = python("-c", text, path=hiding(tmp_path / "hidden", "torch", "onnx", "scipy", "sklearn"), cwd=tmp_path)
    assert done.code == 0, done
    assert np.array_equal(np.load(tmp_path / "outputs.npy"), _predictions(run))


def test_the_script_needs_neither_torch_nor_temper(run: Result, tmp_path: Path) -> None:
    hidden = hiding(tmp_path / "hidden", "torch", "temper")
    assert python("-c", "import temper", path=hidden).code != 0
    done = python(run.artifact.folder / "run.py", path=hidden, cwd=tmp_path)
    assert done.code == 0, done
    assert "(1, 4)" in done.out


def test_verify_reproduces_it(run: Result, task_file: Path) -> None:
    done = temper("verify", run.folder, "--task", f"{task_file}:task")
    assert done.code == 0, done
    assert f"{PROOF} of {PROOF} predictions are the reported ones" in done.out
    assert "verdict: ACCEPT" in done.out


def test_verify_refuses_another_task(run: Result, task_file: Path, cli) -> None:
    done = cli("verify", run.folder, "--task", f"{task_file}:few")
    assert done.code == 2, done
    assert "not the task that the artifact was proven on: its proof data differ" in done.err


@pytest.mark.parametrize("words", [("show", "{run}"), ("catalog",), ("catalog", "quantization.post_training")])
def test_json_for_machines(run: Result, cli, words: tuple[str, ...]) -> None:
    done = cli(*(word.format(run=run.folder) for word in words), "--json")
    assert done.code == 0, done
    document = json.loads(done.out)
    if words[0] == "show":
        assert document["proof"]["verdict"] == "ACCEPT"
        assert document["recipe"] == run.artifact.recipe
    elif len(words) == 1:
        assert "quantization.post_training" in document["technique"]
        assert "onnxruntime" in document["runtime"]
    else:
        assert {"ranges", "placement"} <= {knob["name"] for knob in document["knobs"]}


def test_show_for_people(run: Result, cli) -> None:
    done = cli("show", run.folder)
    assert done.code == 0, done
    for expected in ("chosen artifact", "best float runtime", "verdict: ACCEPT", "run.py"):
        assert expected in done.out


def test_what_ships_is_explained_layer_by_layer(run: Result, cli) -> None:
    explanation = json.loads(cli("explain", run.folder, "--json").out)
    names = [layer["name"] for layer in explanation["layers"]]
    assert names == ["0", "2", "4"]
    assert all(layer["weight"]["relative_error"] > 0 for layer in explanation["layers"] if layer["weight"])
    assert explanation["call_s"] > 0
    assert "sensitivity" in cli("explain", run.folder).out
    assert "What it is made of" in run.report.read_text(encoding="utf-8")


def test_bench_against_the_baseline(run: Result, cli) -> None:
    done = cli("bench", run.folder / "baseline", run.folder, "--rounds", 5, "--json")
    assert done.code == 0, done
    document = json.loads(done.out)
    assert len(document["rows"]) == 2
    assert document["rows"][0]["ratio"]["value"] == 1
    assert all(row["latency_s"]["value"] > 0 for row in document["rows"])


def test_a_finished_run_is_not_run_again(run: Result, task_file: Path, cli) -> None:
    before = (run.folder / "artifact" / "manifest.json").read_bytes()
    words = ("--out", run.folder, "--minimize", "size", "--max-drop", 0.05, "--trials", 2)
    done = cli("optimize", f"{task_file}:task", *words, "--resume")
    assert done.code == 0, done
    assert "nothing to resume" in done.err
    assert (run.folder / "artifact" / "manifest.json").read_bytes() == before


def _points(task_file: Path) -> np.ndarray:
    from temper.pipeline.task_loading import load_task

    return load_task(f"{task_file}:task").data.proof[0]


def _predictions(run: Result) -> np.ndarray:
    return np.load(run.folder / "predictions" / "output_0.npy")
