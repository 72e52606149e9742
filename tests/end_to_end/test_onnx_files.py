"""An ONNX file goes the whole way: from Task.from_onnx to a proven artifact that loads and verifies."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import temper
from temper import Data, Goal, Task
from temper.core.errors import DataError, TaskError, UsageError
from temper.core.goal import Conditions
from tests import models
from tests.models import randomized

TASK = """
from pathlib import Path

import numpy as np

from temper import Data, Task

HERE = Path(__file__).parent
images = np.random.default_rng(0).normal(size=(240, 3, 12, 12)).astype(np.float32)
task = Task.from_onnx(HERE / "model.onnx", Data(images))
"""
BRANCHING = """
<ir_version: 8, opset_import: ["": 17]>
branching (float[batch, 4] x) => (float[batch, 4] y)
{
    total = ReduceSum <keepdims = 0> (x)
    zero = Constant <value = float {0.0}> ()
    positive = Greater (total, zero)
    y = If (positive) <
        then_branch = then () => (float[batch, 4] a) { a = Relu (x) },
        else_branch = other () => (float[batch, 4] b) { b = Neg (x) }
    >
}
"""


def test_a_convolutional_file(tmp_path: Path) -> None:
    model = randomized(models.Residual()).eval()
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 12, 12),),
        tmp_path / "model.onnx",
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    (tmp_path / "task.py").write_text(TASK)
    task = f"{tmp_path / 'task.py'}:task"
    lines: list[str] = []
    result = temper.optimize(task, Goal(max_drop=0.05), out=tmp_path / "run", trials=4, tell=lines.append)
    assert result.proof.metric == "agreement"
    assert result.proof.verdict == "ACCEPT"
    assert result.artifact.runtime.name in ("onnxruntime", "openvino")
    assert any("not tried" in line and "ONNX file has none" in line for line in lines)
    images = np.random.default_rng(1).normal(size=(3, 3, 12, 12)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    assert np.corrcoef(result.artifact.load()(images).ravel(), expected.ravel())[0, 1] > 0.95
    assert temper.verify(tmp_path / "run", task).examples == result.proof.examples


def test_a_file_that_decides_by_value_gets_its_best_runtime(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(BRANCHING), tmp_path / "model.onnx")
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    task = Task.from_onnx(tmp_path / "model.onnx", Data({"x": rows}))
    lines: list[str] = []
    goal = Goal(max_drop=0.05)
    result = temper.optimize(task, goal, out=tmp_path / "run", trials=3, tell=lines.append)
    assert result.proof.verdict == "ACCEPT"
    assert not result.artifact.recipe["techniques"]
    assert any("quantization.onnx_static" in line and "outside of branches" in line for line in lines)


def test_a_file_that_is_not_there_is_said() -> None:
    with pytest.raises(TaskError, match=r"no file .*nowhere\.onnx"):
        Task.from_onnx("nowhere.onnx", Data(np.ones((9, 3))))


def test_examples_of_different_lengths_are_refused(tmp_path: Path) -> None:
    """Cut to one length or padded, they would be other examples than those that were given."""
    (tmp_path / "model.onnx").write_bytes(onnx.parser.parse_model(BRANCHING).SerializeToString())
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=3 + number % 2).astype(np.float32) for number in range(60)]
    task = Task.from_onnx(tmp_path / "model.onnx", Data((rows, np.zeros(60, np.int64))))
    with pytest.raises(DataError, match="the examples differ in length"):
        temper.optimize(task, Goal(max_drop=0.05), out=tmp_path / "run", trials=1, tell=lambda line: None)
    whole = Task.from_onnx(tmp_path / "model.onnx", Data(generator.normal(size=(60, 4)).astype(np.float32)))
    goal = Goal(max_drop=0.05, conditions=Conditions(length=3))
    with pytest.raises(UsageError, match="leave the length out"):
        temper.optimize(whole, goal, out=tmp_path / "other", trials=1, tell=lambda line: None)
