"""Techniques that train: the training part is made again in the process that trains, and nothing is trained twice."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from temper.core.errors import UsageError
from temper.core.goal import Goal
from temper.core.journal import Journal
from temper.core.recipe import Recipe
from temper.core.task import Task
from temper.pipeline.optimize import optimize
from temper.pipeline.prepare import Prepared, prepare
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.task_loading import load_task
from temper.pipeline.workshop import Workshop
from tests.end_to_end.conftest import TASK

TRAINABLE = f'''{TASK}

def trainable(loss=None, **sources):
    x, y = clusters()
    held = parts()
    data = Data(
        calibration=held.calibration, selection=held.selection, proof=held.proof,
        training=sources.get("training", (x[:200], y[:200])),
    )
    return Task(network, data, loss=loss, name="trainable")


class Items(torch.utils.data.Dataset):
    """The training part, item by item."""

    def __len__(self):
        return 200

    def __getitem__(self, index):
        x, y = clusters()
        return x[index], y[index]


def from_items():
    return trainable(training=Items())


def from_loader():
    return trainable(training=torch.utils.data.DataLoader(Items(), batch_size=50, shuffle=True))


def with_less():
    x, y = clusters()
    return trainable(training=(x[:150], y[:150]))


def with_own_loss():
    return trainable(loss=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets.long()))
'''
TRAINED = {
    "techniques": [{"name": "quantization.aware_training", "num_bits": 4, "epochs": 2, "batch": 50}],
    "runtime": {"name": "onnxruntime"},
}


@pytest.fixture
def trainable(tmp_path: Path) -> Path:
    file = tmp_path / "tasks.py"
    file.write_text(TRAINABLE, encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    place = RunFolder(tmp_path / "run")
    place.root.mkdir()
    return place


def prepared(file: Path, name: str, folder: RunFolder, told: list[str]) -> Prepared:
    return prepare(load_task(f"{file}:{name}"), Goal(), 0, folder, told.append)


def workshop(task: Prepared, folder: RunFolder, told: list[str]) -> Workshop:
    assert task.training is not None
    return Workshop(folder, Goal(), task.target, 0, training=task.training.stored_in(folder), tell=told.append)


@pytest.mark.parametrize("name", ["trainable", "from_items", "from_loader", "with_own_loss"])
def test_a_recipe_that_trains_is_trained_once(name: str, trainable: Path, folder: RunFolder) -> None:
    told: list[str] = []
    task = prepared(trainable, name, folder, told)
    recipe = Recipe.from_json(TRAINED)
    with workshop(task, folder, told) as place:
        place.build(recipe, folder.trial(1), time_s=120)
        epochs = [line for line in told if line.startswith("epoch")]
        assert [line.partition(":")[0] for line in epochs] == ["epoch 1 of 2", "epoch 2 of 2"]
        assert "on selection nan" not in epochs[0]
        place.build(recipe, folder.trial(2), time_s=120)
        assert [line for line in told if line.startswith("epoch")] == epochs
        layers = place.layers(recipe, folder.trial(2))
        assert [line for line in told if line.startswith("epoch")] == epochs
    first, second = (folder.trial(number) / "model.onnx" for number in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    assert not list(folder.checkpoints.glob("*"))
    assert len(layers) == 3
    assert all(layer.node for layer in layers), "no time can be found for it"
    assert all(layer.weight is not None and layer.weight.quantization_error > 0 for layer in layers)


def test_training_that_was_killed_goes_on(trainable: Path, folder: RunFolder) -> None:
    """The time ends in the middle: the process is stopped, and the next one begins behind the last whole epoch."""
    told: list[str] = []
    task = prepared(trainable, "trainable", folder, told)
    long = json.loads(json.dumps(TRAINED))
    long["techniques"][0] |= {"epochs": 40}
    recipe = Recipe.from_json(long)

    class Enough(Exception):
        pass

    def stop(line: str) -> None:
        told.append(line)
        if line.startswith("epoch 3 "):
            raise Enough

    assert task.training is not None
    with (
        Workshop(folder, Goal(), task.target, 0, training=task.training.stored_in(folder), tell=stop) as place,
        pytest.raises(Enough),
    ):
        place.build(recipe, folder.trial(1), time_s=120)
    with workshop(task, folder, told) as place:
        place.build(recipe, folder.trial(1), time_s=120)
    resumed = next(line for line in told if "goes on" in line)
    assert int(resumed.rsplit(" ", 1)[1]) >= 2
    assert told[-1].startswith("epoch 40 of 40")


def test_the_search_trains_without_options(trainable: Path, tmp_path: Path) -> None:
    """For the least size, training is proposed on its own, and what it makes is smaller than 8 bits are."""
    told: list[str] = []
    goal = Goal(minimize="size", max_drop=0.05)
    result = optimize(
        f"{trainable}:trainable", goal, out=tmp_path / "run", trials=14, runtimes=["onnxruntime"], tell=told.append
    )
    journal = Journal(tmp_path / "run" / "journal.sqlite")
    trials = journal.trials()
    journal.close()
    trained = [each for each in trials if any("aware" in str(technique) for technique in each.recipe.techniques)]
    assert any(each.measured for each in trained), told
    assert result.proof.verdict.value == "ACCEPT"


@pytest.fixture
def reasons(folder: RunFolder) -> Callable[[Task], str]:
    def told(task: Task) -> str:
        lines: list[str] = []
        found = prepare(task, Goal(), 0, folder, lines.append)
        assert found.training is None
        return "\n".join(lines)

    return told


def test_a_training_part_that_cannot_be_used_is_said(trainable: Path, reasons: Callable[[Task], str]) -> None:
    task = load_task(f"{trainable}:trainable")
    assert "file.py:name" in reasons(replace(task, source=None))
    assert "has no loss of its own" in reasons(replace(task, metric="cosine"))


def test_a_run_is_not_resumed_with_other_training_data_or_another_loss(trainable: Path, tmp_path: Path) -> None:
    def run(name: str) -> None:
        optimize(f"{trainable}:{name}", Goal(), out=tmp_path / "run", trials=1, resume=True, runtimes=["onnxruntime"])

    optimize(f"{trainable}:from_items", Goal(), out=tmp_path / "run", trials=1, runtimes=["onnxruntime"])
    run("from_items")
    with pytest.raises(UsageError, match="training data differ"):
        run("with_less")
    with pytest.raises(UsageError, match="loss differ"):
        run("with_own_loss")


def test_a_loss_is_told_by_its_name(trainable: Path, folder: RunFolder) -> None:
    """Not by an address, which is another one in each process."""
    task = load_task(f"{trainable}:trainable")
    prints = [
        prepare(replace(task, loss=loss), Goal(), 0, folder, lambda line: None).fingerprint["loss"]
        for loss in (None, "mse", nn.CrossEntropyLoss(), partial(nn.functional.cross_entropy, label_smoothing=0.1))
    ]
    assert prints == ["None", "mse", "CrossEntropyLoss", "partial"]
