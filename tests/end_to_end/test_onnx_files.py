"""An ONNX file goes the whole way: from Task.from_onnx to a proven artifact that loads and verifies."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import temper
from temper import Data, Goal, Task
from temper.core.errors import DataError, TaskError, UsageError
from temper.core.goal import Conditions
from tests import models
from tests.end_to_end.conftest import installed, recipe
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


class Attention(nn.Module):
    """Tokens (batch, length) to a class of each token, (batch, length, 3), and one of the sentence, (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.qkv = nn.Embedding(20, 64), nn.Linear(64, 192)
        self.mix, self.tags, self.sentence = nn.Linear(64, 64), nn.Linear(64, 3), nn.Linear(64, 4)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens)
        q, k, v = self.qkv(x).chunk(3, 2)
        x = x + self.mix((q @ k.transpose(1, 2) / 8).softmax(2) @ v).relu()
        return self.tags(x) + 5, self.sentence(x.mean(1))


def sentences(count: int = 260) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return {"tokens": [rng.integers(0, 20, length) for length in rng.integers(2, 24, count)]}


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("attention") / "model.onnx"
    torch.onnx.export(
        Attention().eval(),
        (torch.zeros(2, 5, dtype=torch.int64),),
        file,
        dynamo=True,
        verbose=False,
        input_names=["tokens"],
        output_names=["tags", "sentence"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},),
    )
    return file


@pytest.mark.usefixtures("quick_proof")
class TestLengthsAsTheyCome:
    RECIPES = (
        recipe(),
        recipe("quantization.onnx_static"),
        recipe("quantization.onnx_dynamic"),
        recipe("quantization.onnx_static", runtime="openvino"),
    )

    def test_the_whole_way(self, attention: Path, tmp_path: Path, distribution: Path) -> None:
        task = Task.from_onnx(attention, Data(sentences()))
        lines: list[str] = []
        with installed(distribution) as patch:
            patch.setenv("TEMPER_TEST_RECIPES", json.dumps(self.RECIPES))
            result = temper.optimize(
                task,
                Goal(minimize="size", max_drop=0.1),
                out=tmp_path / "run",
                trials=len(self.RECIPES),
                search="scripted",
                tell=lines.append,
            )
        assert not [line for line in lines if "failed" in line], lines
        assert result.proof.verdict == "ACCEPT"
        assert result.artifact.recipe["techniques"], "integers are smaller"
        assert "lengths as they come" in result.report.read_text(encoding="utf-8")
        assert [str(each) for each in result.artifact.schema.inputs] == ["tokens: int64[batch, length]"]
        shapes = {each.name: each.shape for each in result.artifact.schema.outputs}
        assert shapes == {"tags": (None, "length", 3), "sentence": (None, 4)}
        model = result.artifact.load()
        session = onnxruntime.InferenceSession(attention)
        for batch, length in ((1, 1), (2, 9), (3, 40)):
            tokens = np.random.default_rng(length).integers(0, 20, (batch, length))
            for output, expected in zip(model(tokens).values(), session.run(None, {"tokens": tokens})):
                np.testing.assert_allclose(output, expected, atol=0.15)
        again = temper.verify(tmp_path / "run", task)
        assert again.reproduced == again.examples

    def test_one_length_is_timed(self, attention: Path, tmp_path: Path) -> None:
        task, conditions = Task.from_onnx(attention, Data(sentences(120))), Conditions(length=40)
        goal = Goal(max_drop=0.5, conditions=conditions)
        result = temper.optimize(task, goal, out=tmp_path / "run", trials=1, tell=lambda line: None)
        assert result.artifact.conditions == conditions
        assert "length 40" in result.report.read_text(encoding="utf-8")


def test_a_length_that_the_file_fixes_is_said(tmp_path: Path) -> None:
    """Cut to one length or padded, they would be other examples than those that were given."""
    (tmp_path / "model.onnx").write_bytes(onnx.parser.parse_model(BRANCHING).SerializeToString())
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=3 + number % 2).astype(np.float32) for number in range(60)]
    task = Task.from_onnx(tmp_path / "model.onnx", Data((rows, np.zeros(60, np.int64))))
    with pytest.raises(DataError, match=r"takes x: float32\[batch, 4\]: 4 and no other length. Give .* padded to 4"):
        temper.optimize(task, Goal(max_drop=0.05), out=tmp_path / "run", trials=1, tell=lambda line: None)
    whole = Task.from_onnx(tmp_path / "model.onnx", Data(generator.normal(size=(60, 4)).astype(np.float32)))
    goal = Goal(max_drop=0.05, conditions=Conditions(length=3))
    with pytest.raises(UsageError, match="leave the length out"):
        temper.optimize(whole, goal, out=tmp_path / "other", trials=1, tell=lambda line: None)
