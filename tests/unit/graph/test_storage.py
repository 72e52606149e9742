import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from temper.core.errors import ArtifactError, TrialError
from temper.core.graph import Graph
from temper.graph.mode import set_training
from temper.graph.quantizers import FAKE_QUANTIZE, packed
from temper.graph.storage import FUNCTIONS, GRAPH_FILE, WEIGHTS_FILE, load, save
from temper.graph.surgery import add_tensor, set_tensor
from tests import models
from tests.models import EXAMPLE_NAMES, EXAMPLES, example_graph, example_of, graph_of, images, rows, tokens


def stored(graph: Graph, folder: Path) -> Graph:
    save(graph, folder)
    return load(folder)


def assert_same_bits(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(("model", "inputs"), EXAMPLES, ids=EXAMPLE_NAMES)
def test_loaded_graph_is_the_same_in_both_modes(model: nn.Module, inputs: tuple[Tensor, ...], tmp_path: Path) -> None:
    graph = example_graph(model, inputs)
    loaded = stored(graph, tmp_path)
    assert loaded.schema == graph.schema
    assert [node.name for node in loaded.module.graph.nodes] == [node.name for node in graph.module.graph.nodes]
    assert list(dict(loaded.module.named_parameters())) == list(dict(graph.module.named_parameters()))
    assert list(dict(loaded.module.named_buffers())) == list(dict(graph.module.named_buffers()))
    assert_same_bits(loaded.example, graph.example)
    larger = tuple(torch.cat((each, each)) for each in inputs)
    assert_same_bits(loaded(*larger), graph(*larger))
    for each in (graph, loaded):
        set_training(each, True)
    torch.manual_seed(0)
    expected = graph(*larger)
    torch.manual_seed(0)
    assert_same_bits(loaded.copy()(*larger), expected)


def test_loaded_graph_trains_as_the_original(tmp_path: Path) -> None:
    graph = example_of(models.Transformer)
    set_training(graph, True)
    gradients = []
    for each in (graph, stored(graph, tmp_path)):
        torch.manual_seed(0)
        each(tokens())[0].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in each.module.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_frozen_parameters_stay_frozen(tmp_path: Path) -> None:
    graph = example_of(models.Perceptron)
    graph.module.get_parameter("layers.0.weight").requires_grad_(False)
    loaded = stored(graph, tmp_path)
    frozen = [name for name, parameter in loaded.module.named_parameters() if not parameter.requires_grad]
    assert frozen == ["layers.0.weight"]


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    graph = example_of(models.Perceptron)
    graph.module.layers.get_submodule("4").alias = graph.module.get_parameter("layers.4.weight")
    loaded = stored(graph, tmp_path)
    assert loaded.module.get_parameter("layers.4.alias") is loaded.module.get_parameter("layers.4.weight")
    assert (tmp_path / WEIGHTS_FILE).read_bytes().count(b"layers.4.") == 2  # weight and bias


def test_layout_in_memory_is_kept(tmp_path: Path) -> None:
    graph = example_of(models.Residual)
    weight = graph.module.get_parameter("body.3.weight").detach().to(memory_format=torch.channels_last)
    set_tensor(graph.module, "body.3.weight", weight)
    loaded = stored(graph, tmp_path)
    assert loaded.module.get_parameter("body.3.weight").stride() == weight.stride() != (108, 9, 3, 1)
    assert_same_bits(loaded(images()), graph(images()))


@pytest.mark.parametrize("pack", [False, True])
def test_quantized_graph(pack: bool, tmp_path: Path) -> None:
    graph = example_of(models.Perceptron)
    weight = next(node for node in graph.module.graph.nodes if node.target == "layers.4.weight")
    scale = add_tensor(graph.module, "scale", torch.full((4,), 0.01))
    zero = add_tensor(graph.module, "zero", torch.zeros(4, dtype=torch.int32))
    (user,) = weight.users
    with graph.module.graph.inserting_before(user):
        quantizer = graph.module.graph.call_function(FAKE_QUANTIZE, (weight, scale, zero, -127, 127, 0))
    user.replace_input_with(weight, quantizer)
    graph.module.recompile()
    graph = packed(graph) if pack else graph
    assert_same_bits(stored(graph, tmp_path)(rows()), graph(rows()))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 2, 2.0, True, -0.0, 1e-300])
def test_numbers_keep_type_and_bits(value: float, tmp_path: Path) -> None:
    graph = graph_of(nn.Linear(8, 8), rows())
    with graph.module.graph.inserting_before(graph.module.graph.output_node()):
        (result,) = graph.module.graph.output_node().args[0]
        product = graph.module.graph.call_function(torch.ops.aten.mul.Tensor, (result, value))
    graph.module.graph.output_node().args = ((product,),)
    graph.module.recompile()
    loaded = stored(graph, tmp_path)
    (argument,) = (node.args[1] for node in loaded.module.graph.nodes if node.name == product.name)
    assert (type(argument), repr(argument)) == (type(value), repr(value))


def test_values_are_recorded_for_techniques_that_ask(tmp_path: Path) -> None:
    loaded = stored(example_of(models.Transformer), tmp_path)
    values = {node.name: node.meta.get("val") for node in loaded.module.graph.nodes}
    assert values["embedding"].shape == (3, 6, 16)
    assert not values["ids" if "ids" in values else "x0"].is_floating_point()


def test_operator_outside_of_the_lists_is_not_saved(tmp_path: Path) -> None:
    graph = graph_of(nn.Linear(8, 8), rows())
    (result,) = graph.module.graph.output_node().args[0]
    result.target = torch.relu
    with pytest.raises(TrialError, match=r"node 'linear' calls .*relu.* cannot hold"):
        save(graph, tmp_path)


def edit_call(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Replace a field of the first operator call."""

    def edit(fields: dict[str, Any]) -> None:
        next(node for node in fields["modules"][0]["nodes"] if node["op"] == "call_function")[field] = value

    return edit


def edit_first(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Replace a field of the first node, which reads a tensor."""

    def edit(fields: dict[str, Any]) -> None:
        fields["modules"][0]["nodes"][0][field] = value

    return edit


def edit_tensor(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(fields: dict[str, Any]) -> None:
        fields["tensors"][0][field] = value

    return edit


INJECTION = '");__import__("os").system("touch injected");("'

HOSTILE = {
    "opens a file": edit_call("target", "aten.from_file.default"),
    "takes a raw storage": edit_call("target", "aten.set_.source_Storage"),
    "reads unchecked memory": edit_call("target", "aten._nested_view_from_buffer.default"),
    "unknown namespace": edit_call("target", "profiler._record_function_enter.default"),
    "dunder of a namespace": edit_call("target", "aten.__class__.mro"),
    "dunder of a packet": edit_call("target", "aten.relu.__class__"),
    "python builtin": edit_call("target", "builtins.eval"),
    "attrgetter": edit_call("target", "operator.attrgetter"),
    "methodcaller": edit_call("target", "operator.methodcaller"),
    "target of another type": edit_call("target", ["aten.relu.default"]),
    "code in a node's name": edit_call("name", INJECTION),
    "keyword as a node's name": edit_call("name", "lambda"),
    "name that the code uses": edit_call("name", "torch"),
    "code in a keyword": edit_call("kwargs", {"x=1); print(2": 1}),
    "method call": edit_call("op", "call_method"),
    "module call": edit_call("op", "call_module"),
    "unknown kind of argument": edit_call("args", [{"object": "os.system"}]),
    "two kinds of argument": edit_call("args", [{"node": "x0", "tuple": []}]),
    "unknown dtype": edit_call("args", [{"dtype": "__class__"}]),
    "node from the future": edit_call("args", [{"node": "output"}]),
    "too few arguments": edit_call("args", []),
    "code in a tensor's name": edit_first("target", f"layers.{INJECTION}"),
    "attribute that is no tensor": edit_first("target", "forward"),
    "dunder attribute": edit_first("target", "__class__.__mro__"),
    "tensor over a method": edit_tensor("name", "forward"),
    "tensor over the graph": edit_tensor("name", "_graph"),
    "tensor inside a method": edit_tensor("name", "forward.weight"),
    "tensor that is not there": edit_tensor("key", "absent"),
    "dimensions that are not there": edit_tensor("order", [0, 1, 2, 3, 4]),
    "unknown format": lambda fields: fields.update(format=2),
    "no modules": lambda fields: fields.update(modules=[]),
    "schema of other inputs": lambda fields: fields["schema"]["inputs"][0].update(shape=[None, 9]),
    "missing field": lambda fields: fields.pop("tensors"),
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_graph_is_refused(
    edit: Callable[[dict[str, Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(example_of(models.Perceptron), tmp_path)
    fields = json.loads((tmp_path / GRAPH_FILE).read_text())
    edit(fields)
    (tmp_path / GRAPH_FILE).write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        load(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == [GRAPH_FILE, WEIGHTS_FILE]


@pytest.mark.parametrize(
    "target",
    [
        "aten.from_file.default",
        "aten.set_.source_Storage",
        "aten.resize_.default",
        "aten._reshape_alias.default",
        "aten._nested_view_from_buffer.default",
        "operator.attrgetter",
        "builtins.eval",
        "aten.relu.absent",
    ],
)
def test_dangerous_operator_is_refused_by_name(target: str, tmp_path: Path) -> None:
    """Before its arguments are looked at: they might fit."""
    save(example_of(models.Perceptron), tmp_path)
    fields = json.loads((tmp_path / GRAPH_FILE).read_text())
    edit_call("target", target)(fields)
    (tmp_path / GRAPH_FILE).write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match=f"calls '{target}', which is no operator that a stored graph may call"):
        load(tmp_path)


@pytest.mark.parametrize("file", [GRAPH_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("content", [None, b"", b"[" * 100_000, b"\x80\x04\x95garbage", b"{}"])
def test_broken_file_is_refused(file: str, content: bytes | None, tmp_path: Path) -> None:
    save(example_of(models.Perceptron), tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ArtifactError, match="Make it anew"):
        load(tmp_path)


def test_functions_that_reach_other_code_are_in_no_list() -> None:
    assert not {operator.attrgetter, operator.methodcaller, operator.itemgetter} & set(FUNCTIONS.values())


class Keyed(nn.Module):
    """A module whose name is no identifier."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"a-b c": nn.Linear(8, 8), "user:item": nn.Linear(8, 8)})

    def forward(self, x: Tensor) -> Tensor:
        return self.heads["a-b c"](x) + self.heads["user:item"](x)


def test_names_of_modules_that_are_no_identifiers_are_kept(tmp_path: Path) -> None:
    graph = graph_of(Keyed(), rows())
    loaded = stored(graph, tmp_path)
    assert dict(loaded.module.named_parameters()).keys() == dict(graph.module.named_parameters()).keys()
    assert_same_bits(loaded(rows()), graph(rows()))


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\nb", "a..b", ".a", "", "a\u2028b", "a\x00"])
def test_names_that_could_leave_their_quotes_are_refused(name: str, tmp_path: Path) -> None:
    save(example_of(models.Perceptron), tmp_path)
    fields = json.loads((tmp_path / GRAPH_FILE).read_text())
    fields["tensors"][0]["name"] = fields["modules"][0]["nodes"][0]["target"] = name
    (tmp_path / GRAPH_FILE).write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="is no name for a tensor or module"):
        load(tmp_path)
