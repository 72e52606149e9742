"""ONNX files as graphs: inputs matched, constants written in, examples counted first, branches decided."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper

from temper.core.data import Examples
from temper.core.errors import DataError, TaskError, UsageError
from temper.core.goal import Conditions
from temper.core.schema import Array
from temper.core.task import OnnxFile
from temper.graph.onnx.adoption import adopt
from temper.graph.onnx.facts import control_flow, decided_branches, float_products
from temper.graph.onnx.folding import folded
from temper.graph.onnx.inputs import batch_axis
from temper.graph.onnx.program import nodes_of, onnx_model, with_model
from temper.graph.storage import load, save

RECURRENT = """
<ir_version: 8, opset_import: ["": 17]>
recurrent (float[batch, width] x, float[2, batch, 4] state, int64 rate) => (float[batch, 4] y, float[2, batch, 4] next)
{
    known = Constant <value = int64 {16000}> ()
    fast = Equal (rate, known)
    weight = If (fast) <
        then_branch = then () => (float[3, 4] a) { a = Identity (first) },
        else_branch = other () => (float[3, 4] b) { b = Identity (second) }
    >
    seen = MatMul (x, weight)
    next = Add (state, seen)
    y = ReduceSum <keepdims = 0> (next, axis)
}
"""
FIXED = """
<ir_version: 8, opset_import: ["": 17]>
fixed (float[2, 3] x) => (float[2, 4] y) { y = MatMul (x, first) }
"""
MIXING = """
<ir_version: 8, opset_import: ["": 17]>
mixing (float[batch, 3] x) => (float[batch, 3] y)
{
    total = ReduceSum <keepdims = 0> (x)
    zero = Constant <value = float {0.0}> ()
    positive = Greater (total, zero)
    y = If (positive) <
        then_branch = then () => (float[batch, 3] a) { a = Relu (x) },
        else_branch = other () => (float[batch, 3] b) { b = Neg (x) }
    >
}
"""
HALVES = """
<ir_version: 8, opset_import: ["": 17]>
halves (float16[batch, 3] x) => (float16[batch, 3] y) { y = Add (x, x) }
"""


SEQUENCES = """
<ir_version: 8, opset_import: ["": 17]>
sequences (float[2, batch, 4] state, float[batch, time, 3] x)
    => (float[batch, time, 4] y, float[batch, halves, 4] z, float[2, batch, 4] next)
{
    seen = MatMul (x, first)
    total = ReduceSum <keepdims = 0> (state, axis)
    one = Constant <value = int64[1] {1}> ()
    wide = Unsqueeze (total, one)
    y = Add (seen, wide)
    begin = Constant <value = int64[1] {0}> ()
    end = Constant <value = int64[1] {99}> ()
    along = Constant <value = int64[1] {1}> ()
    step = Constant <value = int64[1] {2}> ()
    z = Slice (y, begin, end, along, step)
    next = Add (state, state)
}
"""
PRETENDING = """
<ir_version: 8, opset_import: ["": 17]>
pretending (float[batch, time] x) => (float[batch, 4] y)
{
    shape = Constant <value = int64[2] {-1, 4}> ()
    y = Reshape (x, shape)
}
"""


def written(text: str, folder: Path) -> Path:
    model: ModelProto = onnx.parser.parse_model(text)
    weights = {"first": np.eye(3, 4, dtype=np.float32), "second": np.ones((3, 4), np.float32), "axis": np.array([0])}
    used = {name for node in nodes_of(model.graph) for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(each, name) for name, each in weights.items() if name in used
    )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def examples(**inputs: Array) -> Examples:
    return Examples(inputs=tuple(inputs.values()), names=tuple(inputs))


@pytest.fixture
def streams() -> Examples:
    generator = np.random.default_rng(0)
    state = generator.normal(size=(6, 2, 4)).astype(np.float32)
    return examples(state=state, x=generator.normal(size=(6, 3)).astype(np.float32))


def test_state_and_constant_become_ordinary_inputs(tmp_path: Path, streams: Examples) -> None:
    file = OnnxFile(path=written(RECURRENT, tmp_path), constants={"rate": 16000})
    original, graph = adopt(file, streams, Conditions(batch=1))
    assert [str(spec) for spec in graph.schema.inputs] == ["x: float32[batch, 3]", "state: float32[batch, 2, 4]"]
    assert [spec.shape for spec in graph.schema.outputs] == [(None, 4), (None, 2, 4)]
    state, x = streams.inputs
    following = state + (x @ np.eye(3, 4, dtype=np.float32))[:, None]
    for outputs in (
        graph(*map(torch.from_numpy, (x, state))),
        tuple(original(torch.tensor(x), torch.tensor(state)).values()),
    ):
        assert np.allclose(outputs[0], following.sum(1), atol=1e-6)
        assert np.allclose(outputs[1], following, atol=1e-6)


def test_the_reference_follows_the_constant(tmp_path: Path, streams: Examples) -> None:
    path = written(RECURRENT, tmp_path)
    one, other = (
        adopt(OnnxFile(path=path, constants={"rate": rate}), streams, Conditions(batch=1))[0] for rate in (16000, 8000)
    )
    assert not one.state_dict()["digest"].equal(other.state_dict()["digest"])
    given = {name: torch.tensor(each) for name, each in zip(streams.names or (), streams.inputs)}
    assert not torch.equal(one(**given)["y"], other(**given)["y"])


def test_a_branch_that_a_constant_decides_is_folded_away(tmp_path: Path, streams: Examples) -> None:
    _, graph = adopt(
        OnnxFile(path=written(RECURRENT, tmp_path), constants={"rate": 8000}), streams, Conditions(batch=1)
    )
    model = onnx_model(graph)
    assert model is not None
    assert len(decided_branches(model.graph)) == 1
    smaller = with_model(graph, folded(graph))
    after = onnx_model(smaller)
    assert after is not None
    assert not control_flow(after)
    assert len(float_products(after)) == 1
    for one, same in zip(graph(*graph.example), smaller(*graph.example)):
        assert torch.allclose(one, same, atol=1e-6)


def test_a_branch_that_an_input_decides_stays(tmp_path: Path, streams: Examples) -> None:
    model = onnx.load(written(RECURRENT, tmp_path))
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0))
    model.graph.node.insert(1, helper.make_node("Cast", ["largest"], ["rate"], to=onnx.TensorProto.INT64))
    del model.graph.input[2]
    onnx.save(model, tmp_path / "model.onnx")
    _, graph = adopt(OnnxFile(path=tmp_path / "model.onnx"), streams, Conditions(batch=1))
    kept = onnx_model(graph)
    assert kept is not None
    assert not decided_branches(kept.graph)
    assert not float_products(kept)


def test_without_a_dynamic_batch_the_sizes_are_those_measured(tmp_path: Path, streams: Examples) -> None:
    file = OnnxFile(path=written(RECURRENT, tmp_path), constants={"rate": 8000}, dynamic_batch=False)
    _, graph = adopt(file, streams, Conditions(batch=1))
    assert graph.schema.batch == 1
    assert graph.schema.outputs[1].shape == (1, 2, 4)


def test_a_file_that_mixes_its_examples_takes_the_measured_batch_only(tmp_path: Path) -> None:
    rows = np.ones((20, 3), np.float32)
    rows[7:] *= -1
    assert adopt(OnnxFile(path=written(MIXING, tmp_path)), examples(x=rows), Conditions(batch=1))[1].schema.batch == 1
    assert (
        adopt(OnnxFile(path=written(MIXING, tmp_path)), examples(x=rows[:7]), Conditions(batch=1))[1].schema.batch
        is None
    )


def test_a_fixed_batch_other_than_the_measured_one_is_said(tmp_path: Path) -> None:
    file = OnnxFile(path=written(FIXED, tmp_path))
    rows = examples(x=np.ones((5, 3), np.float32))
    assert adopt(file, rows, Conditions(batch=2))[1].schema.batch == 2
    with pytest.raises(UsageError, match=r"takes a batch of 2 only.*--batch 2"):
        adopt(file, rows, Conditions(batch=1))


def test_half_precision_inside_is_float32_outside(tmp_path: Path) -> None:
    rows = examples(x=np.ones((5, 3), np.float32))
    _, graph = adopt(OnnxFile(path=written(HALVES, tmp_path)), rows, Conditions(batch=1))
    (output,) = graph(torch.full((2, 3), 1.5))
    assert output.dtype is torch.float32
    assert output.tolist() == [[3.0] * 3] * 2


@pytest.mark.parametrize(
    ("given", "constants", "message"),
    [
        ({"x": (6, 3), "state": (6, 2, 4)}, {}, r"constants=\{'rate': \.\.\.\}"),
        ({"x": (6, 3), "state": (6, 3, 4)}, {"rate": 1}, "no batch of examples fits all"),
        ({"x": (6, 3), "wrong": (6, 2, 4)}, {"rate": 1}, "Give a dict of arrays by these names"),
        ({"x": (6, 3), "state": (6, 9, 9)}, {"rate": 1}, r"takes state: float32\[2, batch, 4\]"),
        ({"x": (6, 3), "state": (6, 2, 4), "rate": (6, 1)}, {}, "is a constant"),
    ],
)
def test_data_that_does_not_fit_is_said(
    tmp_path: Path, given: dict[str, tuple[int, ...]], constants: dict[str, int], message: str
) -> None:
    arrays = {name: np.ones(shape, np.int64 if name == "rate" else np.float32) for name, shape in given.items()}
    with pytest.raises(DataError, match=message):
        adopt(OnnxFile(path=written(RECURRENT, tmp_path), constants=constants), examples(**arrays), Conditions(batch=1))


def lengthy(lengths: list[int], *shape: int) -> Examples:
    """Sequences `x` of these lengths, (length, *shape), with zeros behind them."""
    generator = np.random.default_rng(0)
    array = np.zeros((len(lengths), max(lengths), *shape), np.float32)
    for row, length in enumerate(lengths):
        array[row, :length] = generator.normal(size=(length, *shape))
    return Examples(inputs=(array,), names=("x",), lengths=np.array(lengths), axes=(1,))


def test_a_file_whose_length_is_open_takes_every_length(tmp_path: Path) -> None:
    """The inputs stand in another order in the file, and only one of them has the length."""
    sequences, generator = lengthy([3, 7, 5, 5, 9, 3], 3), np.random.default_rng(1)
    state = generator.normal(size=(6, 2, 4)).astype(np.float32)
    both = replace(sequences, inputs=(*sequences.inputs, state), names=("x", "state"), axes=(1, None))
    original, graph = adopt(OnnxFile(path=written(SEQUENCES, tmp_path)), both, Conditions(length=12))
    assert [str(spec) for spec in graph.schema.inputs] == [
        "state: float32[batch, 2, 4]",
        "x: float32[batch, length, 3]",
    ]
    assert [spec.shape for spec in graph.schema.outputs] == [(None, "length", 4), (None, None, 4), (None, 2, 4)]
    for length in (1, 4, 20):
        x = generator.normal(size=(3, length, 3)).astype(np.float32)
        y = x @ np.eye(3, 4, dtype=np.float32) + state[:3].sum(1)[:, None]
        call = torch.from_numpy(state[:3]), torch.from_numpy(x)
        for one, same, exact in zip(graph(*call), original(*call).values(), (y, y[:, ::2], 2 * state[:3])):
            assert np.allclose(one, exact, atol=1e-6)
            assert torch.equal(one, same)


def test_examples_that_happen_to_be_equally_long_have_a_length_too(tmp_path: Path) -> None:
    state = np.zeros((4, 2, 4), np.float32)
    equal = lengthy([5, 5, 5, 5], 3)
    both = replace(equal, inputs=(*equal.inputs, state), names=("x", "state"), axes=(1, None))
    _, graph = adopt(OnnxFile(path=written(SEQUENCES, tmp_path)), both, Conditions())
    assert [spec.shape for spec in graph.schema.outputs] == [(None, "length", 4), (None, None, 4), (None, 2, 4)]


@pytest.mark.parametrize("sizes", ["batch, 3", "2, 3", "1, 3"])
def test_a_length_that_the_file_fixes_is_refused(tmp_path: Path, sizes: str) -> None:
    file = OnnxFile(path=written(FIXED.replace("[2, 3]", f"[{sizes}]").replace("[2, 4]", "[n, 4]"), tmp_path))
    with pytest.raises(DataError, match=r"3 and no other length. Give the examples padded to 3, .* axis dynamic"):
        adopt(file, lengthy([2, 3, 5]), Conditions())


def test_steps_may_be_counted_before_examples(tmp_path: Path) -> None:
    """Both axes are open and alike in the data: the file says which of them is the batch."""
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        sums (float[time, batch, 3] x) => (float[time, batch, 3] y)
        { steps = Constant <value = int64 {0}> ()  y = CumSum (x, steps) }
    """
    _, graph = adopt(OnnxFile(path=written(text, tmp_path)), lengthy([3, 4, 6], 3), Conditions())
    assert graph.schema.outputs[0].shape == (None, "length", 3)
    x = torch.randn(2, 5, 3)
    assert torch.allclose(graph(x)[0], x.cumsum(1), atol=1e-6)


def test_a_length_that_is_open_in_name_only_is_refused(tmp_path: Path) -> None:
    """The file runs at lengths that its fixed shape divides into, and mixes the examples there."""
    file = OnnxFile(path=written(PRETENDING, tmp_path))
    with pytest.raises(TaskError, match=r"at length (3|5) \(x: float32\[batch, length\]\).*padded to that length"):
        adopt(file, lengthy([3, 4, 5]), Conditions())


def test_bad_files_and_constants_are_said(tmp_path: Path, streams: Examples) -> None:
    path = written(RECURRENT, tmp_path)
    with pytest.raises(TaskError, match="no input called 'speed'; its inputs are x, state, rate"):
        adopt(OnnxFile(path=path, constants={"speed": 1}), streams, Conditions(batch=1))
    with pytest.raises(TaskError, match=r"'rate' has shape \(2,\)"):
        adopt(OnnxFile(path=path, constants={"rate": [1, 2]}), streams, Conditions(batch=1))
    path.write_bytes(b"no model")
    with pytest.raises(TaskError, match="cannot be run by ONNX Runtime"):
        adopt(OnnxFile(path=path), streams, Conditions(batch=1))


def test_graphs_of_files_are_copied_and_stored(tmp_path: Path, streams: Examples) -> None:
    _, graph = adopt(
        OnnxFile(path=written(RECURRENT, tmp_path), constants={"rate": 8000}), streams, Conditions(batch=1)
    )
    graph(*graph.example)  # a session exists, which cannot be copied
    (tmp_path / "stored").mkdir()
    save(graph.copy(), tmp_path / "stored")
    again = load(tmp_path / "stored")
    assert again.schema == graph.schema
    for one, same in zip(graph(*graph.example), again(*again.example), strict=True):
        assert torch.equal(one, same)


@pytest.mark.parametrize(
    ("sizes", "example", "batch", "axis"),
    [
        ([None, 3, 8], (3, 8), 1, 0),
        ([2, None, 128], (2, 128), 1, 1),
        ([2, None, 128], (2, 128), 2, 1),
        ([1, 3, 8], (3, 8), 1, 0),
        ([4, 1, 8], (4, 8), 1, 1),
        ([1, 3, 8], (3, 9), 1, None),
        ([], (), 1, None),
        ([None, None, 3], ("length", 3), 1, 0),
        ([None, 16], ("length",), 16, 0),
        ([1, None], ("length",), 1, 0),
        ([None, 1, 3], ("length", 3), 1, 1),
    ],
)
def test_the_axis_of_the_examples(
    sizes: list[int | None], example: tuple[int | str, ...], batch: int, axis: int | None
) -> None:
    assert batch_axis(sizes, example, batch) == axis
