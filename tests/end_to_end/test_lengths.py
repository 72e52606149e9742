"""Models whose inputs differ in length, and detectors whose outputs nest, go the whole way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper import Conditions, Data, Goal, Task, load, verify
from temper.core.artifact import Artifact
from temper.core.errors import UsageError
from temper.core.proof import Verdict
from temper.measure.metrics import resolve, scores
from temper.pipeline.bench import bench
from temper.pipeline.optimize import Result, optimize

VOCABULARY, COUNT = 20, 200


class LanguageModel(nn.Module):
    """Tokens (batch, length) to logits (batch, length, 20), each of which reads what stands before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 8), nn.Linear(8, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        positions = torch.arange(1, tokens.shape[1] + 1)
        return self.head(self.mix(x.cumsum(1) / positions[:, None]).relu())


def documents() -> Data:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, VOCABULARY, length) for length in rng.integers(3, 30, COUNT)]
    return Data(([text[:-1] for text in texts], [text[1:] for text in texts]))


def language_task() -> Task:
    torch.manual_seed(0)
    return Task(LanguageModel().eval(), documents(), metric="perplexity", name="language model")


def optimized(task: Task, out: Path, **goal: Any) -> Result:
    return optimize(task, Goal(**goal), out=out, trials=1, tell=lambda line: None)


@pytest.mark.usefixtures("quick_proof")
class TestLanguageModel:
    def test_lengths_as_they_come(self, tmp_path: Path) -> None:
        task = language_task()
        result = optimized(task, tmp_path / "run", max_drop=0.5)
        assert result.proof.verdict is Verdict.ACCEPT
        assert "The examples differ in length: 2 to 28" in " ".join(result.proof.notes)
        assert "lengths as they come" in result.report.read_text(encoding="utf-8")
        model = load(result.folder)
        assert [str(spec) for spec in model.schema.inputs] == ["tokens: int64[batch, length]"]
        for length in (1, 7, 50):
            tokens = np.arange(length)[None] % VOCABULARY
            with torch.no_grad():
                expected = task.module()(torch.from_numpy(tokens)).numpy()
            np.testing.assert_allclose(model(tokens), expected, atol=1e-5)
        with pytest.raises(UsageError, match="--length"):
            bench([str(result.folder)], Conditions(), rounds=5, tell=lambda line: None)
        again = verify(result.folder, task)
        assert again.reproduced == again.examples

    def test_one_length_is_timed(self, tmp_path: Path) -> None:
        conditions = Conditions(length=40, batch=2)
        result = optimized(language_task(), tmp_path / "run", conditions=conditions)
        assert Artifact.open(result.folder).conditions == conditions
        assert "batch 2, length 40, 1 thread" in result.report.read_text(encoding="utf-8")
        assert "(2, 40)" in (result.artifact.folder / "run.py").read_text(encoding="utf-8")

    def test_a_length_that_the_data_does_not_have(self, tmp_path: Path) -> None:
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (60, 6))
        task = Task(LanguageModel(), (tokens[:, :-1], tokens[:, 1:]), metric="perplexity")
        with pytest.raises(UsageError, match="leave the length out"):
            optimized(task, tmp_path / "run", conditions=Conditions(length=40))


class Detector(nn.Module):
    """Boxes and scores of 6 anchors, and features at two scales."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.stem, self.boxes, self.scores = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(36, 24), nn.Linear(36, 18)

    def forward(self, image: Tensor) -> Any:
        features = self.stem(image).relu()
        pooled = nn.functional.adaptive_avg_pool2d(features, (2, 3)).flatten(1)
        boxes, scores = self.boxes(pooled).unflatten(1, (6, 4)), self.scores(pooled).unflatten(1, (6, 3))
        if self.form == "tuple":
            return boxes, scores
        if self.form == "dict":
            return {"boxes": boxes, "scores": scores}
        return {"boxes": boxes, "levels": [features, {"pooled": pooled, "scores": scores}]}


def closeness(outputs: Any, targets: np.ndarray) -> np.ndarray:
    """How near the first box is to any that is there: targets (n, boxes, 4) hold -100 where an image has fewer."""
    boxes = outputs["boxes"] if isinstance(outputs, dict) else outputs[0]
    distance = np.abs(boxes[:, :1] - targets).sum(2)
    return -np.where(targets[:, :, 0] == -100, np.inf, distance).min(1)


@pytest.mark.usefixtures("quick_proof")
@pytest.mark.parametrize("form", ["tuple", "dict", "nested"])
def test_detectors(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((120, 3, 8, 12)).astype(np.float32)
    boxes = [rng.random((count, 4)).astype(np.float32) for count in rng.integers(1, 5, 120)]
    torch.manual_seed(0)
    task = Task(Detector(form).eval(), Data((images, boxes)), metric=closeness)
    result = optimized(task, tmp_path / "run", max_drop=2.0)
    assert result.proof.verdict is Verdict.ACCEPT
    outputs = load(result.folder)(images[:3])
    with torch.no_grad():
        expected = task.module()(torch.from_numpy(images[:3]))
    if form == "nested":
        (features, inner), flat = expected["levels"], outputs
        assert list(flat) == ["boxes", "levels_0", "levels_1_pooled", "levels_1_scores"]
        expected = {"boxes": expected["boxes"], "a": features, "b": inner["pooled"], "c": inner["scores"]}
    assert isinstance(outputs, type(expected))
    pairs = zip(outputs.values(), expected.values()) if isinstance(outputs, dict) else zip(outputs, expected)
    for output, wanted in pairs:
        np.testing.assert_allclose(output, wanted.numpy(), atol=1e-5)


def test_agreement_with_the_original_at_every_length() -> None:
    """Where there are no targets, outputs are compared with the original's: padding on both sides says nothing."""
    ours = np.zeros((2, 5, 3), np.float32)
    ours[0, :2], ours[1, :5] = 1.0, -2.0
    cosine = resolve("cosine")
    assert scores(cosine, ours, None, ours).tolist() == [1.0, 1.0]
    assert scores(cosine, ours, None, -ours) == pytest.approx([-1.0, -1.0])
