"""What must hold of every quantizer, whatever its bits, scale, zero point and axis."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from temper.graph.quantizers import FAKE_QUANTIZE, packed
from temper.graph.surgery import add_tensor
from tests.models import graph_of

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(2.0**-20, 2.0**10, width=32)
EASY = settings(deadline=None, max_examples=60)
ROUNDING = 1 + 1e-5


def bounds(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def fake(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    result: Tensor = torch.ops.temper.fake_quantize(x, scale, zero_point, low, high, axis)
    return result


@EASY
@given(seed=SEEDS, bits=BITS, size=SCALES)
def test_error_is_half_a_step_without_clipping(seed: int, bits: int, size: float) -> None:
    weight = drawn(seed, 5, 7) * size
    low, high = bounds(bits, signed=True)
    scale = weight.abs().amax(1) / high
    zero = torch.zeros(5, dtype=torch.int32)
    error = (weight - fake(weight, scale, zero, low, high, 0)).abs()
    assert (error <= scale[:, None] / 2 * ROUNDING).all()


@EASY
@given(seed=SEEDS, bits=BITS, size=SCALES, signed=st.booleans(), data=st.data())
def test_grid_is_small_holds_zero_and_is_left_alone(
    seed: int, bits: int, size: float, signed: bool, data: st.DataObject
) -> None:
    low, high = bounds(bits, signed)
    zero = torch.tensor(data.draw(st.integers(low, high)), dtype=torch.int32)
    x = drawn(seed, 2000) * size * 2**bits
    once = fake(x, torch.tensor(size), zero, low, high, None)
    assert len(once.unique()) <= 2**bits
    assert torch.equal(fake(once, torch.tensor(size), zero, low, high, None), once)
    assert torch.equal(fake(torch.zeros(1), torch.tensor(size), zero, low, high, None), torch.zeros(1))


@EASY
@given(seed=SEEDS, bits=BITS, size=SCALES, factor=st.sampled_from([0.25, 0.5, 2.0, 1024.0]))
def test_quantizing_commutes_with_powers_of_two(seed: int, bits: int, size: float, factor: float) -> None:
    low, high = bounds(bits, signed=True)
    x, zero = drawn(seed, 50) * size * high, torch.tensor(0, dtype=torch.int32)
    scaled = fake(x * factor, torch.tensor(size * factor), zero, low, high, None)
    assert torch.equal(scaled, fake(x, torch.tensor(size), zero, low, high, None) * factor)


LAYER = graph_of(nn.Conv2d(3, 4, 3), drawn(0, 2, 3, 6, 6))


@settings(deadline=None, max_examples=25)
@given(
    seed=SEEDS,
    weight_bits=BITS,
    bits=BITS,
    signed=st.booleans(),
    size=SCALES,
    axis=st.sampled_from([None, 1]),
    data=st.data(),
)
def test_packed_graph_equals_fake_quantized_graph(
    seed: int, weight_bits: int, bits: int, signed: bool, size: float, axis: int | None, data: st.DataObject
) -> None:
    graph = LAYER.copy()
    module = graph.module
    (conv,) = (node for node in module.graph.nodes if node.op == "call_function")
    weight = module.get_parameter("weight").detach()
    low, high = bounds(bits, signed)
    channels = () if axis is None else (3,)
    activation = (torch.full(channels, size), torch.full(channels, data.draw(st.integers(low, high))), low, high)
    weights = (weight.abs().amax((1, 2, 3)) / 2 ** (weight_bits - 1), torch.zeros(4), *bounds(weight_bits, signed=True))
    for position, (scale, zero, *integers), along in ((0, activation, axis), (1, weights, 0)):
        scale_node = add_tensor(module, "scale", scale)
        zero_node = add_tensor(module, "zero_point", zero.to(torch.int32))
        with module.graph.inserting_before(conv):
            arguments = (conv.args[position], scale_node, zero_node, *integers, along)
            conv.update_arg(position, module.graph.call_function(FAKE_QUANTIZE, arguments))
    module.recompile()
    x = drawn(seed, 3, 3, 6, 6) * size * 2**bits
    assert torch.equal(packed(graph)(x)[0], graph(x)[0])
