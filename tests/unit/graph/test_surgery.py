import pytest
import torch
from torch import nn

from temper.graph.surgery import add_tensor, clean, set_tensor, tensor_of, users_of_tensor
from tests import models
from tests.models import example_of, graph_of, rows


def test_tensor_of_reads_parameters_and_nothing_else() -> None:
    module = example_of(models.Perceptron).module
    for node in module.graph.nodes:
        if node.op == "get_attr" and "running" not in str(node.target):
            assert tensor_of(module, node) is module.get_parameter(node.target)
        elif node.op != "get_attr":
            assert tensor_of(module, node) is None
    assert tensor_of(module, 3) is None


@pytest.mark.parametrize("trainable", [True, False])
def test_set_tensor_changes_the_value_and_not_the_role(trainable: bool) -> None:
    graph = example_of(models.Perceptron)
    graph.module.get_parameter("layers.4.weight").requires_grad_(trainable)
    set_tensor(graph.module, "layers.4.weight", torch.zeros(4, 16))
    set_tensor(graph.module, "layers.1.running_mean", torch.ones(16))
    weight = graph.module.get_parameter("layers.4.weight")
    assert weight.requires_grad is trainable
    assert "layers.1.running_mean" in dict(graph.module.named_buffers())
    torch.testing.assert_close(graph(rows())[0], graph.module.get_parameter("layers.4.bias").expand(3, 4))


def test_add_tensor_finds_a_free_name_and_every_node_can_use_it() -> None:
    graph = graph_of(nn.Linear(8, 4), rows())
    nodes = [add_tensor(graph.module, name, torch.tensor(2.0)) for name in ("a.scale", "a.scale", "weight")]
    assert [node.target for node in nodes] == ["a_scale", "a_scale_1", "weight_1"]
    before = graph(rows())[0]
    (linear,) = (node for node in graph.module.graph.nodes if node.op == "call_function")
    with graph.module.graph.inserting_before(linear):
        doubled = graph.module.graph.call_function(torch.ops.aten.mul.Tensor, (linear.args[0], nodes[1]))
    linear.update_arg(0, doubled)
    clean(graph.module)
    assert set(dict(graph.module.named_buffers())) == {"a_scale_1"}
    torch.testing.assert_close(graph(2 * rows())[0], graph(rows() * 2)[0])
    assert not torch.allclose(graph(rows())[0], before)


def test_added_parameter_is_trainable() -> None:
    graph = graph_of(nn.Linear(8, 4), rows())
    add_tensor(graph.module, "bias2", torch.zeros(4), trainable=True)
    assert graph.module.get_parameter("bias2").requires_grad


def test_users_of_a_shared_tensor() -> None:
    module = example_of(models.Tied).module
    (name,) = dict(module.named_parameters())
    assert {user.name for user in users_of_tensor(module, name)} == {"embedding", "linear"}


def test_clean_drops_what_nothing_reads_and_keeps_the_rest() -> None:
    graph = example_of(models.Perceptron)
    output = graph.module.graph.output_node()
    first = next(node for node in graph.module.graph.nodes if node.name == "linear")
    output.args = ((first,),)
    clean(graph.module)
    assert set(graph.module.state_dict()) == {"layers.0.weight", "layers.0.bias"}
    assert graph(rows())[0].shape == (3, 16)


def test_clean_keeps_the_tensors_of_graphs_inside() -> None:
    graph = example_of(models.Autocast)
    before = graph(rows())[0]
    inner = next(name for name, _ in graph.module.named_children() if name.startswith("submod"))
    body = graph.module.get_submodule(inner)
    body.register_buffer("offset", torch.ones(8, dtype=torch.bfloat16))
    with body.graph.inserting_before(body.graph.output_node()):
        (result,) = body.graph.output_node().args[0]
        offset = body.graph.get_attr("offset")
        body.graph.output_node().args = ((body.graph.call_function(torch.ops.aten.add.Tensor, (result, offset)),),)
    body.recompile()
    clean(graph.module)
    assert torch.equal(graph(rows())[0], (before.bfloat16() + 1).float())
