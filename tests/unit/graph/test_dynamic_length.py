"""Graphs whose inputs differ in length: captured, costed, stored, exported, quantized, run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.data import Examples
from temper.core.errors import CaptureError, UsageError
from temper.core.goal import Conditions
from temper.core.graph import Graph
from temper.core.technique import applied
from temper.graph.capture import capture
from temper.graph.cost import cost
from temper.graph.storage import load, save
from temper.hardware.detect import this_host
from temper.pipeline.captured import captured, check_length
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.runtimes.torch_eager import TorchEager
from temper.techniques.quantization.post_training import PostTrainingQuantization

WIDTH = 16


class Tagger(nn.Module):
    """One attention block over (batch, length) tokens and their mask: logits of each token, and of the sentence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm = nn.Embedding(30, WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(ids)
        query, key, value = self.qkv(self.norm(x)).unflatten(2, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) + torch.where(mask[:, None, None, :] > 0, 0.0, -1e4)
        x = x + self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        tags = self.head(x)
        return {"tags": tags, "sentence": tags.mean(1), "pairs": tags @ tags.mT}


class FixedLength(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(6)


def examples(lengths: list[int]) -> Examples:
    rng = np.random.default_rng(0)
    ids = np.zeros((len(lengths), max(lengths)), np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = rng.integers(0, 30, length), 1
    return Examples(inputs=(ids, mask), names=("ids", "mask"), lengths=np.array(lengths), axes=(1, 1))


LENGTHS = [1, 4, 9, 6, 6, 2, 5, 6, 11, 6]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return captured(Tagger(), examples(LENGTHS), ("ids", "mask"), Conditions())


def given(batch: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, 30, (batch, length), generator=generator), torch.ones(batch, length, dtype=torch.int64)


SIZES = [(1, 1), (1, 7), (3, 2), (2, 40)]


def test_the_schema_names_the_length(graph: Graph) -> None:
    assert [str(spec) for spec in graph.schema.inputs] == ["ids: int64[batch, length]", "mask: int64[batch, length]"]
    shapes = {spec.name: spec.shape for spec in graph.schema.outputs}
    assert shapes == {"tags": (None, "length", 5), "sentence": (None, 5), "pairs": (None, "length", "length")}


@pytest.mark.parametrize(("batch", "length"), SIZES)
def test_the_graph_is_the_module_at_every_length(graph: Graph, batch: int, length: int, tmp_path: Path) -> None:
    inputs = given(batch, length)
    save(graph, tmp_path)
    with torch.no_grad():
        expected = tuple(Tagger()(*inputs).values())
        for each in (graph, load(tmp_path)):
            for output, wanted in zip(each(*inputs), expected, strict=True):
                torch.testing.assert_close(output, wanted)


@pytest.mark.parametrize("runtime", [OnnxRuntime(), OpenVino(precision="f32"), TorchEager()], ids=str)
def test_runtimes_run_every_length(graph: Graph, runtime: OnnxRuntime, tmp_path: Path) -> None:
    pytest.importorskip(runtime.package)
    runtime.export(graph, tmp_path)
    runner = runtime.load(tmp_path, graph.schema, 1)
    for batch, length in SIZES:
        inputs = given(batch, length)
        expected = Tagger()(*inputs).values()
        for output, wanted in zip(runner.run(*(each.numpy() for each in inputs)), expected, strict=True):
            np.testing.assert_allclose(output, wanted.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_int8_from_calibration_examples_of_different_lengths(graph: Graph, tmp_path: Path) -> None:
    runtime = OnnxRuntime()
    context = Context(runtime=runtime, target=this_host(), seed=0, calibration=examples(LENGTHS * 3).stored)
    quantized = applied(PostTrainingQuantization(), graph, context)
    runtime.export(quantized, tmp_path)
    assert runtime.executed(tmp_path, graph.schema)["int8"] > 0
    runner = runtime.load(tmp_path, graph.schema, 1)
    for batch, length in SIZES:
        inputs = given(batch, length)
        with torch.no_grad():
            simulated, exact = quantized(*inputs)[0], graph(*inputs)[0]
        error = np.abs(runner.run(*(each.numpy() for each in inputs))[0] - simulated.numpy()).max()
        assert error < 4 / 255 * float(simulated.abs().max())
        assert 0 < (simulated - exact).abs().max() < 0.2 * exact.abs().max()


def test_work_grows_with_the_length(graph: Graph) -> None:
    assert cost(graph, 1, 6).flops < 0.6 * cost(graph, 1, 12).flops
    assert cost(graph, 2, 6).flops == cost(graph, 2).flops, "the example is as long as the middle of the lengths"


def test_a_model_that_writes_the_length_into_a_shape() -> None:
    call = ((torch.ones(2, 6),), {})
    with pytest.raises(CaptureError, match=r"length of 'x' is specialized to 6.*pad all examples"):
        capture(FixedLength(), call, names=("x",), axes=(1,))


def test_a_length_to_measure_where_there_is_none() -> None:
    fixed = Examples(inputs=(np.ones((4, 6), np.float32),))
    with pytest.raises(UsageError, match=r"length of 9 .*input_0: float32\[batch, 6\].*leave the length out"):
        check_length(fixed, 9)
    check_length(fixed, None)
    check_length(examples(LENGTHS), 9)
