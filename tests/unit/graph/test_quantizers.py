import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.quantizers import DEQUANTIZE, FAKE_QUANTIZE, QUANTIZE, integer_type, is_quantizer, packed
from temper.graph.surgery import add_tensor
from tests import models
from tests.models import example_of, graph_of, images


def quantize_input(
    graph: Graph,
    consumer: Node,
    position: int,
    scale: Tensor,
    zero_point: Tensor,
    low: int,
    high: int,
    axis: int | None,
) -> None:
    """Let the consumer read one of its arguments through a quantizer."""
    source = consumer.args[position]
    scale_node = add_tensor(graph.module, "scale", scale)
    zero_node = add_tensor(graph.module, "zero_point", zero_point.to(torch.int32))
    with graph.module.graph.inserting_before(consumer):
        quantizer = graph.module.graph.call_function(FAKE_QUANTIZE, (source, scale_node, zero_node, low, high, axis))
    consumer.update_arg(position, quantizer)
    graph.module.recompile()


def quantized(low: int, high: int, *, activation_axis: int | None = None, zero_point: int = 3) -> Graph:
    """The residual net with a per-channel 4-bit weight quantizer and an activation quantizer on its third layer."""
    graph = example_of(models.Residual)
    layer = next(node for node in graph.module.graph.nodes if node.op == "call_function" and node.name == "conv2d_2")
    quantize_input(graph, layer, 1, torch.linspace(0.01, 0.05, 12), torch.zeros(12), -7, 7, 0)
    size = () if activation_axis is None else (12,)
    scale = torch.full(size, 0.05) * (1.0 if activation_axis is None else torch.linspace(0.5, 1.5, 12))
    quantize_input(graph, layer, 0, scale, torch.full(size, zero_point), low, high, activation_axis)
    return graph


@pytest.mark.parametrize(
    ("low", "high"), [(0, 255), (-128, 127), (0, 15), (-127, 127), (-8, 7)], ids=lambda bound: str(bound)
)
@pytest.mark.parametrize("axis", [None, 1])
def test_packed_graph_computes_the_same_bits(low: int, high: int, axis: int | None) -> None:
    graph = quantized(low, high, activation_axis=axis)
    inputs = images(5) * 3  # beyond the range, so that clipping is seen
    integers = packed(graph)
    assert torch.equal(integers(inputs)[0], graph(inputs)[0])
    assert not any(map(is_quantizer, integers.module.graph.nodes))
    targets = [node.target for node in integers.module.graph.nodes]
    assert targets.count(QUANTIZE) == 1
    assert targets.count(DEQUANTIZE) == 2


def test_packing_stores_integers_instead_of_floats() -> None:
    graph = quantized(0, 255)
    before = {name: each.clone() for name, each in graph.module.state_dict().items()}
    stored = packed(graph).module.state_dict()
    (integers,) = (each for name, each in stored.items() if name.endswith("integers"))
    assert integers.dtype == torch.int8
    assert int(integers.abs().max()) == 7
    assert len([each for each in stored.values() if each.dtype == torch.float32 and each.dim() == 4]) == 3
    assert all(torch.equal(before[name], each) for name, each in graph.module.state_dict().items())


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (-128, 127, torch.int8),
        (0, 15, torch.int8),
        (0, 255, torch.uint8),
        (-129, 0, torch.int32),
        (0, 256, torch.int32),
        (-1, 255, torch.int32),
    ],
)
def test_narrowest_type(low: int, high: int, dtype: torch.dtype) -> None:
    assert integer_type(low, high) is dtype


def test_rounding_is_to_even_and_shifted_by_the_zero_point() -> None:
    x = torch.tensor([-9.0, -0.75, -0.25, 0.25, 0.75, 1.25, 9.0])
    scale, zero = torch.tensor(0.5), torch.tensor(2, dtype=torch.int32)
    expected = torch.tensor([-1.0, -1.0, 0.0, 0.0, 1.0, 1.0, 0.5 * (7 - 2)])
    assert torch.equal(torch.ops.temper.fake_quantize(x, scale, zero, 0, 7, None), expected)


def test_each_index_of_the_axis_has_its_own_scale() -> None:
    x = torch.full((2, 3), 1.0)
    scale, zero = torch.tensor([1.0, 0.3, 0.7]), torch.zeros(3, dtype=torch.int32)
    expected = torch.tensor([1.0, 3 * 0.3, 0.7]).expand(2, 3)
    torch.testing.assert_close(torch.ops.temper.fake_quantize(x, scale, zero, -8, 7, 1), expected)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_operators_are_well_formed_for_torch(axis: int | None) -> None:
    size = () if axis is None else (4,)
    arguments = (torch.randn(4, 4), torch.full(size, 0.1), torch.zeros(size, dtype=torch.int32))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(FAKE_QUANTIZE, (*arguments, -8, 7, axis), test_utils=checks)
    typed = arguments[2].to(torch.int8)
    torch.library.opcheck(QUANTIZE, (arguments[0], arguments[1], typed, axis), test_utils=checks)
    integers = torch.ops.temper.quantize(arguments[0], arguments[1], typed, axis)
    torch.library.opcheck(DEQUANTIZE, (integers, arguments[1], typed, axis), test_utils=checks)


def test_shared_weight_keeps_its_float_for_the_other_reader() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    x = torch.randn(3, 8)
    graph = graph_of(Shared(), x)
    second = [node for node in graph.module.graph.nodes if node.op == "call_function"][1]
    quantize_input(graph, second, 1, torch.full((8,), 0.1), torch.zeros(8), -127, 127, 0)
    integers = packed(graph)
    assert torch.equal(integers(x)[0], graph(x)[0])
    assert "layer.weight" in integers.module.state_dict()
