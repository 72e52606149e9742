"""Gradients by hand in float64, a peer's, and that what is trained is what comes out."""

import pytest
import torch
from torch import Tensor, nn

from temper.graph.learned_quantizers import learn, learned_quantize, settle
from temper.graph.quantizers import FAKE_QUANTIZE
from tests.models import graph_of, images


def by_hand(
    x: Tensor, scale: Tensor, zero: float, low: int, high: int, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output and the gradients of x, scale and zero point, element by element, in float64 (LSQ, equations 1 to 3)."""
    x, scale, upstream = x.double(), scale.double(), upstream.double()
    v, z = x / scale, round(zero)
    integers = torch.clamp(torch.round(v), low - z, high - z)
    inside = (v >= low - z) & (v <= high - z)
    wide = scale.expand_as(x)
    return (
        integers * scale,
        upstream * inside,
        upstream * torch.where(inside, integers - v, integers),
        upstream * torch.where(inside, 0.0, -wide),
    )


VALUES = torch.tensor(
    # inside, ties (0.5 and 1.5 steps), both ends exactly, just beyond, far beyond, zero
    [[0.07, 0.05, 0.15, -0.05, -0.8, 0.7], [0.71, -0.81, 5.0, -5.0, 0.0, 0.3]]
)


@pytest.mark.parametrize(
    ("low", "high", "zero"), [(-8, 7, 0.0), (0, 15, 0.0), (0, 15, 5.0), (0, 15, 4.6), (-2, 1, 0.0)]
)
def test_gradients_are_those_of_the_derivation(low: int, high: int, zero: float) -> None:
    x = VALUES.clone().requires_grad_()
    scale = torch.tensor(0.1, requires_grad=True)
    point = torch.tensor(zero, requires_grad=True)
    upstream = torch.linspace(-1, 1, VALUES.numel()).reshape(VALUES.shape)
    output = learned_quantize(x, scale, point if zero else None, low, high, None)
    output.backward(upstream)
    expected, of_x, of_scale, of_zero = by_hand(VALUES, torch.tensor(0.1), zero, low, high, upstream)
    torch.testing.assert_close(output.double(), expected, rtol=1e-6, atol=1e-7)
    assert x.grad is not None
    assert scale.grad is not None
    torch.testing.assert_close(x.grad.double(), of_x, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(scale.grad.double(), of_scale.sum(), rtol=1e-5, atol=1e-6)
    if zero:
        assert point.grad is not None
        torch.testing.assert_close(point.grad.double(), of_zero.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_each_channel_has_its_own_gradient(axis: int) -> None:
    scales = torch.tensor([0.1, 0.03]) if axis == 0 else torch.linspace(0.02, 0.3, 6)
    trained = scales.clone().requires_grad_()
    upstream = torch.randn(VALUES.shape, generator=torch.Generator().manual_seed(0))
    learned_quantize(VALUES, trained, None, -8, 7, axis).backward(upstream)
    shape = (-1, 1) if axis == 0 else (1, -1)
    _, _, expected, _ = by_hand(VALUES, scales.reshape(shape), 0.0, -8, 7, upstream)
    assert trained.grad is not None
    torch.testing.assert_close(trained.grad.double(), expected.sum(1 - axis), rtol=1e-5, atol=1e-6)


def test_a_peer_agrees() -> None:
    """PyTorch's own learnable quantizer, but for values that are cut and still round to an end: it lets those pass."""
    for zero in (0.0, 3.0):
        x = torch.randn(200, generator=torch.Generator().manual_seed(1))
        v = x / 0.11 + zero
        x = x[((v >= 0) & (v <= 15)) | (v < -0.6) | (v > 15.6)]
        assert 100 < len(x) < 200
        found = []
        for ours in (True, False):
            inputs, scale = x.clone().requires_grad_(), torch.tensor([0.11], requires_grad=True)
            point = torch.tensor([zero], requires_grad=True)
            output = (
                learned_quantize(inputs, scale.reshape(()), point.reshape(()), 0, 15, None)
                if ours
                else torch._fake_quantize_learnable_per_tensor_affine(inputs, scale, point, 0, 15, 1.0)
            )
            (output**2).sum().backward()
            found.append((output.detach(), inputs.grad, scale.grad, point.grad))
        for mine, theirs in zip(*found):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_torchao_agrees_on_a_layer() -> None:
    """Its learned ranges, for the weight of a linear layer at 4 bits; weights that are cut and still round to an end,
    which it lets pass, are moved inside."""
    qat = pytest.importorskip("torchao.quantization.qat")
    x = torch.randn(16, 24, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(3))
    scales = torch.linspace(0.2, 0.3, 8)
    v = weight / scales[:, None]
    edge = ((v > 7) & (v < 7.6)) | ((v < -8) & (v > -8.6))
    weight = torch.where(edge, 0.5 * weight, weight)
    config = qat.IntxFakeQuantizeConfig(
        torch.int4, "per_channel", is_symmetric=True, is_dynamic=False, range_learning=True
    )
    theirs = qat.fake_quantizer.IntxFakeQuantizer(config)
    theirs.scale = nn.Parameter(scales[:, None].clone())
    theirs.zero_point = torch.zeros(8, 1)
    theirs._initialized = True
    found = []
    for quantize, scale in (
        (lambda w: learned_quantize(w, mine, None, -8, 7, 0), mine := scales.clone().requires_grad_()),
        (theirs, theirs.scale),
    ):
        trained = weight.clone().requires_grad_()
        output = nn.functional.linear(x, quantize(trained))
        output.square().mean().backward()
        found.append((output.detach(), trained.grad, scale.grad.flatten()))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_few_values_that_stay_where_they_are(bits: int) -> None:
    x = 3 * torch.randn(1000, generator=torch.Generator().manual_seed(bits))
    scale = torch.tensor(0.17)
    once = learned_quantize(x, scale, None, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, None)
    assert len(once.unique()) <= 2**bits
    assert torch.equal(once, learned_quantize(once, scale, None, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, None))


def test_a_change_of_units_changes_nothing_else() -> None:
    found = []
    for unit in (1.0, 4.0):
        x, scale = (unit * VALUES).requires_grad_(), torch.tensor(0.1 * unit, requires_grad=True)
        output = learned_quantize(x, scale, None, -8, 7, None)
        (output / unit).sum().backward()
        assert scale.grad is not None
        found.append((output.detach() / unit, scale.grad * unit))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


class Shared(nn.Module):
    """A quantized convolution, whose input two quantizers of one scale read, and an asymmetric activation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 5)
        self.register_buffer("scales", torch.full((4,), 0.01))
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int32))
        self.register_buffer("scale", torch.tensor(0.02))
        self.register_buffer("zero", torch.tensor(120, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        left = torch.ops.temper.fake_quantize(x, self.scale, self.zero, 0, 255, None)
        right = torch.ops.temper.fake_quantize(x + 1, self.scale, self.zero, 0, 255, None)
        weight = torch.ops.temper.fake_quantize(self.weight, self.scales, self.zeros, -127, 127, 0)
        return nn.functional.conv2d(left + right, weight)


def test_to_the_trainable_form_and_back() -> None:
    graph, inputs = graph_of(Shared(), images()), images()
    before = graph(inputs)[0]
    learned = learn(graph)
    assert len(learned) == 3
    assert len({id(each.scale) for each in learned}) == 2
    trainable = graph(inputs)[0]
    assert torch.equal(before, trainable)
    trainable.square().mean().backward()
    for each in learned:
        assert each.scale.grad is not None
        assert (each.zero_point is None) == (each.node.args[2] is None)
        with torch.no_grad():
            each.scale.add_(0.001 * torch.randn(each.scale.shape, generator=torch.Generator().manual_seed(2)).abs())
            if each.zero_point is not None:
                each.zero_point.copy_(torch.tensor(117.3))
    changed = graph(inputs)[0]
    settle(graph, learned)
    targets = [node.target for node in graph.module.graph.nodes if node.op == "call_function"]
    assert targets.count(FAKE_QUANTIZE) == 3
    assert torch.equal(graph(inputs)[0], changed)
    assert not torch.equal(changed, before)
    assert {name for name, _ in graph.module.named_parameters()} == {"weight"}


def test_the_gradient_is_scaled_by_how_many_share_the_scale() -> None:
    graph = graph_of(Shared(), images())
    learned = learn(graph)
    weights = learned[-1]
    assert weights.factor == pytest.approx((27 * 127) ** -0.5)
    assert learned[0].factor == pytest.approx((images()[0].numel() * 255) ** -0.5)
    graph(images())[0].sum().backward()
    assert weights.scale.grad is not None
    scaled = weights.scale.grad.clone()
    own = weights.scale.detach().clone().requires_grad_()
    weight = dict(graph.module.named_parameters())["weight"].detach()
    left = learned_quantize(images(), learned[0].scale.detach(), learned[0].zero_point, 0, 255, None)
    right = learned_quantize(images() + 1, learned[0].scale.detach(), learned[0].zero_point, 0, 255, None)
    nn.functional.conv2d(left + right, learned_quantize(weight, own, None, -127, 127, 0)).sum().backward()
    assert own.grad is not None
    torch.testing.assert_close(scaled, own.grad * weights.factor)


def test_scales_stay_above_zero() -> None:
    graph = graph_of(Shared(), images())
    for each in learn(graph):
        with torch.no_grad():
            each.scale.fill_(-1.0)
            each.clamp()
        assert bool((each.scale > 0).all())
