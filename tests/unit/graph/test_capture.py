import inspect

import pytest
import torch
from torch import Tensor, nn

from temper.core.errors import CaptureError
from temper.graph.capture import check_weights, flat_outputs
from tests import models
from tests.models import EXAMPLE_NAMES, EXAMPLES, example_graph, graph_of, images, rows


def line_that_the_error_must_name(model: type[nn.Module]) -> str:
    source, start = inspect.getsourcelines(model)
    offset = next(i for i, line in enumerate(source) if "the line that the error must name" in line)
    return f"{inspect.getsourcefile(model)}:{start + offset},"


@pytest.mark.parametrize(("model", "inputs"), EXAMPLES, ids=EXAMPLE_NAMES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_graph_equals_module_at_other_batches(model: nn.Module, inputs: tuple[Tensor, ...], batch: int) -> None:
    graph = example_graph(model, inputs)
    resized = tuple(each[torch.arange(batch) % len(each)] for each in inputs)
    with torch.no_grad():
        expected, nesting, names = flat_outputs(model.eval()(*resized), "model")
        outputs = graph(*resized)
    assert graph.schema.dynamic_batch
    assert graph.schema.nesting == nesting
    assert [spec.name for spec in graph.schema.outputs] == names
    for output, wanted, spec in zip(outputs, expected, graph.schema.outputs, strict=True):
        torch.testing.assert_close(output, wanted)
        assert tuple(batch if size is None else size for size in spec.shape) == wanted.shape


def test_parameters_keep_their_names_and_values() -> None:
    model = models.randomized(models.Residual())
    captured = dict(graph_of(model, images()).module.named_parameters())
    assert captured.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(captured[name], parameter)
        assert captured[name] is not parameter


def test_tied_weights_are_one_parameter() -> None:
    graph = graph_of(models.Tied(), models.tokens())
    assert len(list(graph.module.parameters())) == 1


def test_attention_is_captured_in_training_mode_and_stays_causal() -> None:
    graph = graph_of(models.randomized(models.Transformer()), models.tokens())
    (attention,) = (node for node in graph.module.graph.nodes if "scaled_dot_product" in node.name)
    assert attention.meta["dropout_p"] == 0.5
    assert attention.args[4:] == (0.0, True)


class Auxiliary(nn.Module):
    """Returns one tensor more while it is trained, or while it is not, as networks with auxiliary heads or memories."""

    def __init__(self, more_in_training: bool) -> None:
        super().__init__()
        self.layer, self.more_in_training = nn.Linear(8, 4), more_in_training

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.layer(x)
        return (y, y * 2) if self.training == self.more_in_training else (y,)


@pytest.mark.parametrize("more_in_training", [True, False])
def test_outputs_are_those_of_evaluation_mode(more_in_training: bool) -> None:
    graph = graph_of(Auxiliary(more_in_training), rows())
    assert len(graph(rows())) == len(graph.schema.outputs) == (1 if more_in_training else 2)


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "a")])
def test_keyword_inputs_keep_their_meaning_in_any_order(order: tuple[str, ...]) -> None:
    model = models.TwoInputs()
    values = {name: rows(4) * (i + 1) for i, name in enumerate(order)}
    graph = graph_of(model, **values)
    assert [spec.name for spec in graph.schema.inputs] == list(order)
    larger = {name: torch.cat((each, each)) for name, each in values.items()}
    torch.testing.assert_close(graph(*larger.values())[0], model(**larger)["logits"])


def test_positional_and_keyword_inputs_mix() -> None:
    model = models.TwoInputs()
    graph = graph_of(model, rows(4), c=rows(4) + 1, b=rows(4) - 1)
    assert graph.schema.dynamic_batch
    torch.testing.assert_close(graph(*graph.example)[0], model(rows(4), rows(4) - 1, rows(4) + 1)["logits"])


def test_no_grad_regions_stand_in_the_graph_and_stay_without_gradient() -> None:
    graph = graph_of(models.randomized(models.FrozenBackbone()), images())
    assert [node.target for node in graph.module.graph.nodes if "conv2d" in node.name] == [
        torch.ops.aten.conv2d.default
    ]
    graph(*graph.example)[0].sum().backward()
    with_gradient = {name for name, each in graph.module.named_parameters() if each.grad is not None}
    assert with_gradient == {"head.weight", "head.bias"}


def test_fixed_batch_is_told_by_the_schema() -> None:
    schema = graph_of(models.FixedBatch(), rows(3)).schema
    assert schema.batch == 3
    assert schema.inputs[0].shape == (3, 8)


def test_scalar_output_has_no_batch() -> None:
    assert [spec.shape for spec in graph_of(models.TupleOutput(), rows()).schema.outputs] == [(None, 8), ()]


@pytest.mark.parametrize(
    ("model", "remedy"),
    [(models.DataDependentBranch, "torch.where"), (models.CallsNumpy, "torch function of the same")],
)
def test_error_names_line_and_remedy(model: type[nn.Module], remedy: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match=remedy) as raised:
        graph_of(model(), rows())
    assert line_that_the_error_must_name(model) in str(raised.value)
    assert capfd.readouterr().err == ""


def test_randomness_in_evaluation_mode_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"does not compute what the module computes.*randomness"):
        graph_of(models.Noisy(), rows())


def test_wrong_inputs_name_the_shape() -> None:
    with pytest.raises(CaptureError, match=r"Perceptron fails on an example from the data \(\(3, 9\) torch.float32\)"):
        graph_of(models.Perceptron(), rows(width=9))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_named_and_counted(bad: float) -> None:
    model = models.Perceptron()
    with torch.no_grad():
        model.layers[4].weight[1, :2] = bad
    with pytest.raises(CaptureError, match=r"'layers.4.weight' holds 2 values that are NaN or infinite, of 64"):
        check_weights(model)


def test_model_that_cannot_be_copied_is_told_so() -> None:
    model = models.Perceptron()
    model.cached = model.layers[0].weight * 2
    with pytest.raises(CaptureError, match=r"cannot be copied.*computed from parameters"):
        graph_of(model, rows())


def test_no_tensor_among_the_outputs() -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "positive"

    with pytest.raises(CaptureError, match="returns no tensor, but str"):
        graph_of(Text(), rows())


def test_model_itself_stays_as_it_was() -> None:
    model = models.randomized(models.Residual()).train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    graph_of(model, images())
    assert model.training
    assert not model._forward_hooks
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_infinite_outputs_are_compared_as_such() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(x > 0, float("-inf"))

    assert torch.equal(graph_of(Masked(), rows())(rows(5))[0], Masked()(rows(5)))
