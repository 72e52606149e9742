from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.technique import Technique, applied
from temper.graph.integer_layers import (
    BLOCK_EMBEDDING,
    BLOCK_LINEAR,
    TENSOR_LINEAR,
    activation_group,
    integer_layers,
)
from temper.graph.quantizers import DYNAMIC_QUANTIZE, is_dynamic_quantizer, is_quantizer, packed
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.techniques.quantization.dynamic import DynamicQuantization
from temper.techniques.quantization.weight_only import WeightOnlyQuantization
from tests.models import graph_of

EXACT_VINO = OpenVino(precision="f32")
ROUNDED_OTHERWISE = 2e-2
"""One activation that rounds the other way, over a hundred inputs, relative to the greatest output."""


class Reader(nn.Module):
    """A table of 48 rows of 128, and linear layers that read them, two of them the same value; one has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(48, 128)
        self.left, self.right, self.last = nn.Linear(128, 96), nn.Linear(128, 96, bias=False), nn.Linear(96, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.last(torch.tanh(self.left(x)) * self.right(x))


def ids(batch: int = 3) -> Tensor:
    return torch.randint(0, 48, (batch, 7), generator=torch.Generator().manual_seed(batch))


@pytest.fixture(scope="module")
def reader() -> Graph:
    torch.manual_seed(0)
    return graph_of(Reader().eval(), ids())


def quantized(graph: Graph, technique: Technique, runtime: Runtime) -> Graph:
    return applied(technique, graph, Context(runtime=runtime, target=this_host(), seed=0))


@dataclass(frozen=True)
class Case:
    technique: Technique
    runtime: Runtime
    kernels: dict[str, int]
    """How many operators the runtime must execute with integer weights, by their bits."""


CASES = [
    Case(DynamicQuantization(), OnnxRuntime(), {"int8": 4}),
    Case(DynamicQuantization(), EXACT_VINO, {"int8": 3}),
    Case(WeightOnlyQuantization(group_size=32), OnnxRuntime(), {"int8": 4}),
    Case(WeightOnlyQuantization(group_size=32), EXACT_VINO, {"int8": 4}),
    Case(WeightOnlyQuantization(bits=4, group_size=32), OnnxRuntime(), {"int4": 4}),
    Case(WeightOnlyQuantization(bits=4, group_size=32), EXACT_VINO, {"int4": 4}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.technique} {case.runtime.name}")
def test_runtimes_compute_what_the_graph_says_in_integers(case: Case, reader: Graph, tmp_path: Path) -> None:
    graph = quantized(reader, case.technique, case.runtime)
    case.runtime.export(graph, tmp_path)
    executed = case.runtime.executed(tmp_path, graph.schema)
    assert {name: count for name, count in executed.items() if name.startswith("int")} == case.kernels
    for batch in (1, 4):
        with torch.no_grad():
            expected, exact = graph(ids(batch))[0].numpy(), reader(ids(batch))[0].numpy()
        (found,) = case.runtime.load(tmp_path, graph.schema, 1).run(ids(batch).numpy())
        scale, rounding = np.abs(exact).max(), np.linalg.norm(expected - exact)
        assert np.abs(found - expected).max() / scale < ROUNDED_OTHERWISE
        assert np.linalg.norm(found - expected) < 0.3 * rounding


def test_a_float_graph_counts_no_integers(reader: Graph, tmp_path: Path) -> None:
    for runtime in (OnnxRuntime(), EXACT_VINO):
        folder = tmp_path / runtime.name
        folder.mkdir()
        runtime.export(reader, folder)
        assert not [name for name in runtime.executed(folder, reader.schema) if name.startswith("int")]


@pytest.mark.parametrize("bits", [8, 4])
def test_files_shrink_by_the_bits(bits: int, reader: Graph, tmp_path: Path) -> None:
    graph = quantized(reader, WeightOnlyQuantization(bits=bits, group_size=32), OnnxRuntime())
    OnnxRuntime().export(graph, tmp_path)
    held = sum(len(each.raw_data) for each in onnx.load(tmp_path / "model.onnx").graph.initializer)
    weights = 48 * 128 + 2 * 96 * 128 + 5 * 96
    assert weights * bits / 8 < held < weights * (bits + 32 / 32) / 8 + 4 * (96 + 5) + 64


@pytest.mark.parametrize(
    ("technique", "operators"),
    [
        (DynamicQuantization(), {TENSOR_LINEAR: 3}),
        (WeightOnlyQuantization(group_size=32), {BLOCK_LINEAR: 3, BLOCK_EMBEDDING: 1}),
        (WeightOnlyQuantization(bits=4, group_size=32), {BLOCK_LINEAR: 3, BLOCK_EMBEDDING: 1}),
    ],
    ids=str,
)
def test_whole_operators_compute_the_same(technique: Technique, operators: dict[object, int], reader: Graph) -> None:
    graph = quantized(reader, technique, OnnxRuntime())
    whole = packed(integer_layers(graph))
    targets = [node.target for node in whole.module.graph.nodes]
    assert {each: targets.count(each) for each in operators} == operators
    assert not any(is_quantizer(node) or is_dynamic_quantizer(node) for node in whole.module.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(whole(ids())[0], graph(ids())[0])


def test_layers_of_one_input_share_its_quantizer(reader: Graph) -> None:
    graph = quantized(reader, DynamicQuantization(), OnnxRuntime())
    assert sum(map(is_dynamic_quantizer, graph.module.graph.nodes)) == 2


def test_rows_are_told_to_the_runtime_by_the_file(reader: Graph, tmp_path: Path) -> None:
    graph = quantized(reader, DynamicQuantization(), EXACT_VINO)
    assert activation_group(graph) == 32  # what divides both 128 and 96
    EXACT_VINO.export(graph, tmp_path)
    metadata = {each.key: each.value for each in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert metadata["activation_group"] == "32"


def test_groups_of_two_sizes_are_refused(reader: Graph, tmp_path: Path) -> None:
    graph = quantized(reader, WeightOnlyQuantization(group_size=32), OnnxRuntime())
    quantizer = next(filter(is_dynamic_quantizer, graph.module.graph.nodes))
    quantizer.args = (quantizer.args[0], 64)
    with pytest.raises(TrialError, match="groups of 32, 64"):
        OnnxRuntime().export(graph, tmp_path)


def test_a_shifted_weight_is_refused(reader: Graph) -> None:
    graph = quantized(reader, WeightOnlyQuantization(group_size=32), OnnxRuntime())
    name = next(name for name, _ in graph.module.named_buffers() if "zero_point" in name)
    graph.module.get_buffer(name).fill_(1)
    with pytest.raises(TrialError, match="zero points"):
        integer_layers(graph)


@pytest.mark.parametrize("group", [None, 4])
def test_dynamic_quantizer_is_well_formed_for_torch(group: int | None) -> None:
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(DYNAMIC_QUANTIZE, (torch.randn(2, 3, 8), group), test_utils=checks)


def test_one_grid_for_the_tensor_holds_zero_and_both_ends() -> None:
    x = torch.tensor([[-1.0, 0.0, 0.3], [4.1, 2.0, -0.004]])
    rounded = torch.ops.temper.dynamic_quantize(x, None)
    step = 5.1 / 255
    assert rounded[0, 1] == 0
    torch.testing.assert_close(rounded, torch.round(x / step) * step)
    positive = torch.ops.temper.dynamic_quantize(x.abs() + 1, None)
    assert float((positive - x.abs() - 1).abs().max()) <= 5.1 / 255 / 2 + 1e-6


def test_each_group_of_a_row_has_its_own_step() -> None:
    x = torch.tensor([[127.0, 0.6, 1.0, 0.003], [0.0, 0.0, -254.0, 1.5]])
    expected = torch.tensor([[127.0, 1.0, 1.0, 0.0], [0.0, 0.0, -254.0, 2.0]])
    torch.testing.assert_close(torch.ops.temper.dynamic_quantize(x, 2), expected)


def test_weights_may_have_a_scale_a_group() -> None:
    x = torch.tensor([[0.6, 1.0, 6.0, 10.0]])
    scale = torch.tensor([[0.5, 4.0]])
    rounded = torch.ops.temper.fake_quantize(x, scale, torch.zeros(1, 2, dtype=torch.int32), -8, 7, 0)
    torch.testing.assert_close(rounded, torch.tensor([[0.5, 1.0, 8.0, 8.0]]))
