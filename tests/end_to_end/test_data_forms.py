"""Every form of data and of model call goes the whole way; tasks that live in no file too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from temper import Data, Goal, Task, load
from temper.core.proof import Verdict
from temper.pipeline.optimize import optimize
from temper.pipeline.prepare import prepare
from temper.pipeline.run_folder import RunFolder
from tests.end_to_end.conftest import TASK, python, recipe, script

COUNT, WIDTH = 240, 6


def points(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((COUNT, WIDTH)).astype(np.float32)


def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 3, COUNT)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, COUNT, 50):
        yield torch.from_numpy(points()[start : start + 50]), torch.from_numpy(labels()[start : start + 50])


def test_forms_of_data_are_one(tmp_path: Path) -> None:
    """Arrays, a dataset, a loader and an iterable of batches that hold the same examples make the same task."""
    dataset = TensorDataset(torch.from_numpy(points()), torch.from_numpy(labels()))
    forms = {
        "arrays": (points(), labels()),
        "dataset": dataset,
        "loader": DataLoader(dataset, batch_size=32),
        "iterable": batches(),
    }
    model = nn.Linear(WIDTH, 3)
    goal = Goal()
    prints = {
        name: prepare(Task(model, form), goal, 0, RunFolder(tmp_path / name), lambda line: None).fingerprint
        for name, form in forms.items()
    }
    assert len({json.dumps(each) for each in prints.values()}) == 1, prints


class Pair(nn.Module):
    """Two inputs by name, one of them integers; logits and features come out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.embedding = nn.Linear(WIDTH, 3), nn.Embedding(5, 3)

    def forward(self, values: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layer(values) + self.embedding(kind)
        return features, features.relu()


class Named(Pair):
    """The same with a dict, as transformers models return it."""

    def forward(self, values: Tensor, kind: Tensor) -> dict[str, Tensor]:
        logits, features = super().forward(values, kind)
        return {"features": features, "logits": logits}


@pytest.mark.parametrize("model", [Pair, Named])
@pytest.mark.usefixtures("third_party", "quick_proof")
def test_dicts_in_and_several_outputs(tmp_path: Path, model: type[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER_TEST_RECIPES", json.dumps([recipe()]))
    torch.manual_seed(0)
    module = model().eval()
    kinds = np.random.default_rng(2).integers(0, 5, COUNT)
    data: dict[str, Any] = {"values": points(), "kind": kinds, "labels": labels()}
    goal = Goal(max_drop=0.1)
    result = optimize(
        Task(module, Data(data)), goal, out=tmp_path / "run", trials=1, search="scripted", tell=lambda line: None
    )
    assert result.proof.verdict is Verdict.ACCEPT
    loaded = load(result.folder)
    assert [spec.name for spec in loaded.schema.inputs] == ["values", "kind"]
    outputs = loaded(values=points()[:5], kind=kinds[:5])
    with torch.no_grad():
        expected = module(torch.from_numpy(points()[:5]), torch.from_numpy(kinds[:5]))
    assert type(outputs) is type(expected)
    if isinstance(outputs, dict):
        assert outputs.keys() == expected.keys()
        outputs, expected = outputs.values(), expected.values()
    for output, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, wanted.numpy(), atol=1e-5)


def test_a_task_in_a_plain_script(third_party: Path, tmp_path: Path) -> None:
    """No file:name, no `if __name__ == "__main__"`: workers are started from no copy of the user's script."""
    text = script(
        f"""
        import json
        import os
        from temper import Goal, optimize

        os.environ["TEMPER_TEST_RECIPES"] = {json.dumps([recipe()])!r}
        print("the script runs")
        mine = Task(network(), parts())
        result = optimize(mine, Goal(max_drop=0.05), out="run", trials=1, search="scripted")
        print(result.proof.verdict.value)
        """
    )
    (tmp_path / "mine.py").write_text(TASK.lstrip() + text, encoding="utf-8")
    done = python("mine.py", path=third_party, cwd=tmp_path)
    assert done.code == 0, done
    assert done.out.split("\n")[:2] == ["the script runs", "ACCEPT"]
