import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from temper.core.errors import UsageError
from temper.core.graph import Graph
from temper.graph.cost import NodeCost, cost, shapes
from temper.graph.quantizers import FAKE_QUANTIZE
from temper.graph.surgery import add_tensor
from tests import models
from tests.models import EXAMPLE_NAMES, EXAMPLES, example_graph, example_of, graph_of, images, rows

FLOAT = 4
PRODUCTS = ("conv", "linear", "mm", "matmul", "einsum", "scaled_dot_product")


def of_kind(graph: Graph, batch: int, kind: str) -> NodeCost:
    (node,) = (node for node in cost(graph, batch).nodes if node.operator.startswith(f"aten.{kind}."))
    return node


def product_flops(graph: Graph, batch: int) -> int:
    return sum(node.flops for node in cost(graph, batch).nodes if any(each in node.operator for each in PRODUCTS))


def counted_by_torch(graph: Graph, inputs: tuple[Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        graph(*inputs)
    return int(counter.get_total_flops())


class Call(nn.Module):
    """One function of the inputs as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def test_convolution_in_closed_form() -> None:
    graph = graph_of(nn.Conv2d(6, 8, (3, 5), groups=2, bias=True), images(channels=6, size=10))
    node = of_kind(graph, 4, "conv2d")
    assert node.flops == 2 * 4 * 8 * (8 * 6) * (3 * 3 * 5)
    assert node.read_bytes == FLOAT * 4 * 6 * 10 * 10
    assert node.written_bytes == FLOAT * 4 * 8 * 8 * 6
    assert node.weight_bytes == FLOAT * (8 * 3 * 3 * 5 + 8)


def test_linear_and_attention_in_closed_form() -> None:
    graph = example_of(models.Transformer)
    length, width, heads = 6, 16, 4
    attention = of_kind(graph, 2, "scaled_dot_product_attention")
    assert attention.flops == 2 * 2 * heads * length * length * (width // heads) * 2
    linear = [node.flops for node in cost(graph, 2).nodes if node.operator == "aten.linear.default"]
    assert linear == [2 * 2 * length * width * wide for wide in (48, 16, 32, 32)]


def test_recurrent_in_closed_form() -> None:
    graph = example_of(models.Recurrent)
    assert of_kind(graph, 2, "lstm").flops == 2 * 2 * 2 * 4 * 5 * ((8 + 5) + (5 + 5))
    assert of_kind(graph, 2, "gru").flops == 2 * 2 * 2 * 3 * 4 * (5 + 4)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(model, inputs) for model, inputs in EXAMPLES if not isinstance(model, models.Recurrent | models.Autocast)],
    ids=[name for name in EXAMPLE_NAMES if name not in ("Recurrent", "Autocast")],
)
def test_products_equal_what_torch_counts(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    graph = example_graph(model, inputs)
    larger = tuple(torch.cat((each, each)) for each in inputs)
    assert product_flops(graph, 6) == counted_by_torch(graph, larger)


@pytest.mark.parametrize(
    ("equation", "sizes"),
    [
        ("bld,bmd->blm", ((2, 3, 4), (2, 5, 4))),
        ("bhld,bhmd", ((2, 3, 4, 5), (2, 3, 6, 5))),
        ("...d,...ed->...e", ((2, 3, 4), (2, 3, 5, 4))),
        ("b...d,de->b...e", ((2, 3, 7, 4), (4, 5))),
        ("bij,bjk,bkl->bil", ((2, 3, 4), (2, 4, 5), (2, 5, 6))),
    ],
)
def test_einsum_equals_what_torch_counts(equation: str, sizes: tuple[tuple[int, ...], ...]) -> None:
    operands = tuple(torch.randn(size) for size in sizes)
    graph = graph_of(Call(lambda *each: torch.einsum(equation, *each)), *operands)
    assert product_flops(graph, 2) == counted_by_torch(graph, operands)


def test_einsum_without_a_sum_of_products_only_multiplies() -> None:
    outer = graph_of(Call(lambda a, b: torch.einsum("bij,bk->bik", a, b)), torch.randn(2, 3, 4), torch.randn(2, 5))
    assert of_kind(outer, 2, "einsum").flops == 2 * 3 * 5


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (torch.bmm, (torch.randn(2, 3, 4), torch.randn(2, 4, 5))),
        (torch.matmul, (torch.randn(2, 6, 3, 4), torch.randn(2, 6, 4, 5))),
        (torch.baddbmm, (torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5))),
        (lambda x, y: torch.addmm(x, x, y.t() @ x), (torch.randn(2, 4), torch.randn(2, 4))),
    ],
)
def test_matrix_products_equal_what_torch_counts(function: object, inputs: tuple[Tensor, ...]) -> None:
    graph = graph_of(Call(function), *inputs)
    assert product_flops(graph, 2) == counted_by_torch(graph, inputs) > 0


@pytest.mark.parametrize(
    ("function", "flops", "moved"),
    [
        (torch.exp, 2 * 3 * 8 * 8, 2 * (2 * 3 * 8 * 8) * FLOAT),
        (torch.relu_, 2 * 3 * 8 * 8, 2 * (2 * 3 * 8 * 8) * FLOAT),
        (lambda x: x.mean((2, 3)), 2 * 3 * 8 * 8, (2 * 3 * 8 * 8 + 2 * 3) * FLOAT),
        (lambda x: x.transpose(2, 3), 0, 0),
        (lambda x: x[:, 1:], 0, 0),
        (lambda x: x.flatten(1), 0, 0),
        (lambda x: x.transpose(2, 3).contiguous(), 0, 2 * (2 * 3 * 8 * 8) * FLOAT),
        (lambda x: torch.cat((x, x), 1), 0, (1 + 2) * (2 * 3 * 8 * 8) * FLOAT),
    ],
    ids=["exp", "relu_", "mean", "transpose", "slice", "flatten", "contiguous", "cat of one input, read once"],
)
def test_elements_and_bytes(function: object, flops: int, moved: int) -> None:
    total = cost(graph_of(Call(function), images()), 2)
    assert (total.flops, total.bytes) == (flops, moved)


def test_dropout_costs_nothing_in_evaluation_mode() -> None:
    assert of_kind(example_of(models.Perceptron), 2, "dropout").bytes == 0


def test_quantizer_is_pointwise() -> None:
    graph = graph_of(nn.Linear(8, 4), rows())
    weight = next(node for node in graph.module.graph.nodes if node.target == "weight")
    scale = add_tensor(graph.module, "scale", torch.ones(4))
    zero = add_tensor(graph.module, "zero", torch.zeros(4, dtype=torch.int32))
    linear = next(iter(weight.users))
    with graph.module.graph.inserting_before(linear):
        quantizer = graph.module.graph.call_function(FAKE_QUANTIZE, (weight, scale, zero, -127, 127, 0))
    linear.replace_input_with(weight, quantizer)
    node = next(node for node in cost(graph, 2).nodes if node.operator == "temper.fake_quantize.default")
    assert node.flops == 4 * 8
    assert node.weight_bytes == FLOAT * (4 * 8 + 4 + 4)
    assert of_kind(graph, 2, "linear").flops == 2 * 2 * 8 * 4


def test_weights_count_once_and_lookups_read_rows_only() -> None:
    total = cost(example_of(models.Tied), 2)
    assert total.weight_bytes == FLOAT * 11 * 8
    embedding, output = total.nodes
    assert embedding.weight_bytes == min(2 * 6, 11) * 8 * FLOAT
    assert output.weight_bytes == FLOAT * 11 * 8


def test_peak_holds_a_value_until_its_last_use() -> None:
    wide = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 1))
    assert cost(graph_of(wide, rows()), 5).activation_peak_bytes == FLOAT * 5 * (100 + 100)

    class Skip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.repeat(1, 10).view(-1, 80).sin().sum(1, keepdim=True) + x).exp()

    assert cost(graph_of(Skip(), rows()), 5).activation_peak_bytes == FLOAT * 5 * (8 + 80 + 80)


@pytest.mark.parametrize(("model", "inputs"), EXAMPLES, ids=EXAMPLE_NAMES)
def test_shapes_are_those_of_a_real_run(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    graph = example_graph(model, inputs)
    known = shapes(graph, 4)
    for node in graph.module.graph.nodes:
        node.meta.clear()  # nothing may rest on what capture left
    assert shapes(graph, 4) == known
    outputs = graph(*(each[torch.arange(4) % len(each)] for each in inputs))
    names = [node.name for node in graph.module.graph.output_node().args[0]]
    assert [known[name] for name in names] == [(tuple(each.shape), each.dtype) for each in outputs]


def test_shapes_that_depend_on_values_come_from_a_real_run() -> None:
    graph = graph_of(nn.Linear(8, 4), rows())
    with graph.module.graph.inserting_before(graph.module.graph.output_node()):
        (result,) = graph.module.graph.output_node().args[0]
        found = graph.module.graph.call_function(torch.ops.aten.nonzero.default, (result,))
    graph.module.graph.output_node().args = ((found,),)
    assert shapes(graph, 2)[found.name] == ((8, 2), torch.int64)


@pytest.mark.parametrize("batch", [0, 4])
def test_fixed_batch_is_the_only_one(batch: int) -> None:
    graph = graph_of(models.FixedBatch(), rows(3))
    assert cost(graph, 3).flops > 0
    with pytest.raises(UsageError, match=f"cannot run at batch {batch}"):
        cost(graph, batch)
