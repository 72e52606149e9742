"""What a person gets wrong, and what the machine lacks: one line that says what, where and what to do."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from temper.core.errors import MissingExtra
from temper.core.journal import Journal
from temper.core.recipe import Recipe
from temper.pipeline.optimize import Result
from temper.pipeline.prepare import prepare
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.task_loading import load_task
from temper.pipeline.workshop import Workshop
from tests.end_to_end.conftest import GOAL, TASK, Done, hiding, python, recipe, temper

Cli = Callable[..., Done]

BAD = """
POINTS, LABELS = clusters(400)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        if x.sum() > 0:  # depends on the data
            x = -x
        return self.layer(x)


class Ending(nn.Linear):
    def __init__(self, end):
        super().__init__(WIDTH, CLASSES)
        self.end = end

    def forward(self, x):
        return self.end(super().forward(x))


def made(model=None, metric="accuracy", **data):
    given = {"selection": (POINTS[:100], LABELS[:100]), "proof": (POINTS[100:], LABELS[100:])}
    return Task(model or nn.Linear(WIDTH, CLASSES), Data(**{**given, **data}), metric)


def branching():
    return made(Branching())


def nan_weights():
    model = nn.Linear(WIDTH, CLASSES)
    model.weight.data[1, 2] = float("nan")
    return made(model)


def empty_part():
    return made(selection=(POINTS[:0], LABELS[:0]))


def one_class():
    return made(selection=(POINTS[:100], LABELS[:100] * 0))


def labels_out_of_range():
    return made(selection=(POINTS[:100], LABELS[:100] + 7))


def overlapping():
    return made(selection=(POINTS[90:190], LABELS[90:190]))


def calibration_shape():
    return made(calibration=POINTS[:, :-1])


def calibration_dtype():
    return made(calibration=(POINTS * 10).astype(np.int64))


def nan_metric():
    return made(metric=lambda outputs, targets: np.full(len(targets), np.nan))


def nan_inputs():
    broken = POINTS.copy()
    broken[42, 3] = np.nan
    return made(proof=(broken[100:], LABELS[100:]), selection=(broken[:60], LABELS[:60]))


def wrong_width():
    return made(nn.Linear(WIDTH + 1, CLASSES))


def scalar_output():
    return made(Ending(lambda logits: (logits, logits.mean())))


def bfloat16_output():
    return made(Ending(lambda logits: logits.bfloat16()))


def class_numbers():
    return made(Ending(lambda logits: logits.argmax(-1)))


def half_labels():
    return made(selection=(POINTS[:100], LABELS[:100] + 0.5))


def no_data():
    return Task(nn.Linear(WIDTH, CLASSES), None)


def a_class():
    return Task(Branching, (POINTS, LABELS))


def fails():
    return undefined_name


fine = made()
"""

MISTAKES = {
    "branching": r"bad\.py:{line}.*torch\.where",
    "nan_weights": r"'weight' holds 1 values that are NaN.*checkpoint",
    "empty_part": r"selection: the source holds no examples\. Give",
    "one_class": r"selection: all 100 examples have the target 0.*Give examples of every class",
    "labels_out_of_range": r"selection: 80 of 80 examples have targets that the model has no class for: 7, 8.*0 to 3",
    "overlapping": r"90 of the 100 examples of selection also stand in proof",
    "calibration_shape": r"calibration and proof differ in their inputs: .*float32\[batch, 15\]",
    "calibration_dtype": r"calibration and proof differ in their inputs: .*int64\[batch, 16\]",
    "nan_metric": r"returned NaN or infinity for 80 of 80 examples",
    "nan_inputs": r"selection.*example 42.*Leave them out",
    "wrong_width": r"fails on an example from the data \(\(2, 16\)",
    "scalar_output": r"output 'output_1' has shape \(\) for a batch of \d+: .*Return only such tensors",
    "bfloat16_output": r"bfloat16, which NumPy lacks: return it with \.float\(\)",
    "class_numbers": r"needs logits \(n, classes, \.\.\.\).*Give class numbers, or a metric of your own",
    "half_labels": r"needs logits .* and targets float64\[80\]",
    "no_data": r"the task has no data; give Data",
    "a_class": r"the class Branching, which holds no trained weights; give an instance",
    "fails": r"bad\.py:\d+: `return undefined_name`: NameError",
    "missing": r"holds no 'missing'; it holds fine, .*branching\(\)",
}


@pytest.fixture(scope="module")
def bad_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bad") / "bad.py"
    file.write_text(TASK + BAD, encoding="utf-8")
    return file


def refused(done: Done) -> str:
    """The message of a run that was refused: one line, the last, and nothing of Python's own."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert not done.out
    lines = done.err.strip().splitlines()
    assert [line for line in lines if line.startswith("temper:")] == lines[-1:], done.err
    return lines[-1].removeprefix("temper: ")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_a_task(name: str, bad_file: Path, tmp_path: Path, cli: Cli) -> None:
    said = refused(cli("optimize", f"{bad_file}:{name}", "--out", tmp_path / "run", "--trials", 1))
    text = (TASK + BAD).splitlines()
    line = next(number for number, each in enumerate(text, start=1) if "depends on the data" in each)
    assert re.search(MISTAKES[name].replace("{line}", str(line)), said), said


def test_a_task_file_with_a_syntax_error(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "typo.py"
    file.write_text("from temper import Task\ntask = Task(\n", encoding="utf-8")
    said = refused(cli("optimize", f"{file}:task", "--out", tmp_path / "run"))
    assert f"{file}:2" in said
    assert "Correct that line" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimize", "{file}", "--out", "{out}"], r"names no task: write file\.py:name"),
        (["optimize", "{file}x.py:task", "--out", "{out}"], r"there is no file"),
        (["optimize", "{file}:fine", "--out", "{out}", "--budget", "soon"], r"'soon' is not a length of time"),
        (["optimize", "{file}:fine", "--out", "{out}", "--minimize", "regret"], r"'regret' is not one of latency"),
        (["optimize", "{file}:fine", "--out", "{out}", "--max-drop", "0"], r"max_drop=0\.0 must be positive"),
        (["optimize", "{file}:fine", "--out", "{out}", "--threads", "999"], r"999 threads were asked for"),
        (["optimize", "{file}:fine", "--out", "{file}"], r"exists"),
        (["catalog", "quantization.wishful"], r"the catalog has no 'quantization\.wishful'"),
        (["bench", "{out}"], r"neither a folder with an artifact nor a task"),
        (["bench", "{out}", "--concurrency", "2"], r"give its --rate too"),
        (["bench", "{out}", "--p99", "0.1", "--threads", "2", "--batch", "4"], r"leave --threads and --batch out"),
        (["bench", "{out}", "--rate", "9", "--rounds", "9"], r"with --rate and --p99 it is --duration"),
        (["bench", "{out}", "--duration", "9"], r"without a load it is --rounds"),
        (["show", "{out}"], r"holds no artifact"),
    ],
)
def test_misuse(words: list[str], expected: str, bad_file: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli(*(word.format(file=bad_file, out=tmp_path / "run") for word in words))
    assert re.search(expected, refused(done)), done


def test_an_output_folder_that_is_not_empty(bad_file: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    said = refused(cli("optimize", f"{bad_file}:fine", "--out", tmp_path))
    assert "exists and is not empty: choose another folder" in said
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_budget_too_small_for_one_trial(bad_file: Path, tmp_path: Path, cli: Cli) -> None:
    said = refused(cli("optimize", f"{bad_file}:fine", "--out", tmp_path / "run", "--budget", "1s"))
    assert "ended before a first trial was measured" in said
    assert "--budget 10m" in said
    assert "--resume" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds next to nothing."""
    place = tmp_path / "disk"
    place.mkdir()
    _mount("-t", "tmpfs", "-o", "size=96k", "tmpfs", place)
    yield place
    subprocess.run(["umount", "-l", place], check=False)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "sealed"
    place.mkdir()
    _mount("-t", "tmpfs", "-o", "ro", "tmpfs", place)
    yield place
    subprocess.run(["umount", "-l", place], check=False)


def _mount(*words: object) -> None:
    try:
        done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here to make a file system of its own")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


def test_a_full_disk(small_disk: Path, bad_file: Path, cli: Cli) -> None:
    said = refused(cli("optimize", f"{bad_file}:fine", "--out", small_disk / "run", "--trials", 1))
    assert "No space left on device" in said or "full" in said
    assert "Free some space" in said or "free some space" in said


def test_a_disk_that_is_full_in_the_worker(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """The building process finds the disk full: the run ends, instead of calling every trial a failure."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(FULL, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(hook))
    out = tmp_path / "run"
    said = refused(cli("optimize", f"{task_file}:task", "--out", out, "--trials", 3))
    assert "No space left on device" in said
    assert "--resume" in said
    monkeypatch.delenv("PYTHONPATH")
    journal = Journal(out / "journal.sqlite")
    assert not journal.trials()
    journal.close()


FULL = """
import builtins, errno, os, pathlib

write_text = pathlib.Path.write_text


def full(self, *args, **kwargs):
    if self.name in ("manifest.json", "run.py"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
    return write_text(self, *args, **kwargs)


pathlib.Path.write_text = full
"""


def test_a_read_only_folder(read_only: Path, bad_file: Path, cli: Cli) -> None:
    for out in (read_only, read_only / "run"):
        said = refused(cli("optimize", f"{bad_file}:fine", "--out", out, "--trials", 1))
        assert str(read_only) in said
        assert "may be written" in said


def test_an_extra_that_is_missing(task_file: Path, tmp_path: Path) -> None:
    """The run goes on with the runtimes that are there, and says how to get the other."""
    hidden = hiding(tmp_path / "hidden", "openvino", "executorch")
    options = ("--minimize", "size", "--max-drop", 0.05, "--trials", 1)
    done = temper("optimize", f"{task_file}:task", "--out", tmp_path / "run", *options, path=hidden)
    assert done.code == 0, done
    journal = Journal(tmp_path / "run" / "journal.sqlite")
    missing = journal.fact("missing")
    assert journal.fact("target")["runtimes"] == ["onnxruntime", "torch_eager"]
    journal.close()
    assert set(missing) == {"aot_inductor", "executorch", "openvino", "torch_compiled"}
    assert "C++ compiler" in missing["torch_compiled"]
    assert "pip install 'temper-ml[openvino]'" in missing["openvino"]
    report = tmp_path / "run" / "report.html"
    if report.exists():
        assert "temper-ml[openvino]" in report.read_text(encoding="utf-8")


def test_an_artifact_whose_runtime_is_missing(task_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    task = prepare(load_task(f"{task_file}:task"), GOAL, 0, folder, lambda line: None)
    with Workshop(folder, GOAL, task.target, 0) as workshop:
        workshop.build(Recipe.from_json(recipe(runtime="openvino")), folder.trial(1), time_s=60)
    hidden = hiding(tmp_path / "hidden", "openvino", "torch")
    text = f"""
import temper
from temper.core.errors import MissingExtra
try:
    temper.load({str(folder.trial(1))!r})
except MissingExtra as error:
    print(error)
"""
    done = python("-c", text, path=hidden)
    assert MissingExtra.__name__ not in done.err
    assert "pip install 'temper-ml[openvino]'" in done.out, done


def test_a_worker_leaves_no_files_in_the_way(run: Result) -> None:
    """What lies in a finished run's folder is what the documentation names."""
    held = {entry.name for entry in os.scandir(run.folder)}
    assert {"artifact", "baseline", "predictions", "journal.sqlite"} <= held
    assert held <= {"artifact", "baseline", "predictions", "journal.sqlite", "workers.log", "report.html", ".lock"}
