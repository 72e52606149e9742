"""Gradients by hand in float64, a peer's, and that what is trained is what comes out."""

import pytest
import torch
from torch import Tensor, nn

from temper.core.errors import MissingExtra
from temper.graph.learned_quantizers import STEEPEST, LearnedQuantizer, learn, learned_quantize, settle, shifted
from temper.graph.quantizers import FAKE_QUANTIZE
from temper.hardware.compiler import require_compiler
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


UNIT = 0.125
"""A scale that floats hold exactly, so that ties and ends are met."""
VALUES = UNIT * torch.tensor(
    # inside, ties, the ends of each range below and half a step beyond them, far beyond, zero
    [
        [0.7, 0.5, 1.5, -0.5, -1.5, 3.0, -8.0, 7.0, -8.5, 7.5, 0.0, 0.3],
        [15.0, 15.5, -5.0, 10.0, -5.5, 10.5, -2.0, 1.0, -2.5, 40.0, -40.0, 7.01],
    ]
)


@pytest.mark.parametrize(
    ("low", "high", "zero"), [(-8, 7, 0.0), (0, 15, 0.0), (0, 15, 5.0), (0, 15, 4.6), (-2, 1, 0.0)]
)
def test_gradients_are_those_of_the_derivation(low: int, high: int, zero: float) -> None:
    x = VALUES.clone().requires_grad_()
    scale = torch.tensor(UNIT, requires_grad=True)
    point = torch.tensor(zero, requires_grad=True)
    upstream = torch.linspace(-1, 1, VALUES.numel()).reshape(VALUES.shape)
    output = learned_quantize(x, scale, point if zero else None, low, high, None)
    output.backward(upstream)
    expected, of_x, of_scale, of_zero = by_hand(VALUES, torch.tensor(UNIT), zero, low, high, upstream)
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
    scales = torch.tensor([0.1, 0.03]) if axis == 0 else torch.linspace(0.02, 0.3, VALUES.shape[1])
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
@pytest.mark.parametrize("zero", [None, 1.4])
@pytest.mark.parametrize("axis", [None, 0])
def test_few_values_that_stay_where_they_are(bits: int, zero: float | None, axis: int | None) -> None:
    x = 3 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(bits))
    scale = torch.tensor(0.17) if axis is None else torch.tensor([0.17, 0.03, 1.1, 0.6])
    point = None if zero is None else torch.tensor(zero)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    once = learned_quantize(x, scale, point, low, high, axis)
    assert all(len(row.unique()) <= 2**bits for row in once)
    assert torch.equal(once, learned_quantize(once, scale, point, low, high, axis))


@pytest.mark.parametrize("axis", [None, 0])
def test_compiled_it_computes_the_same(axis: int | None) -> None:
    try:
        require_compiler("training")
    except MissingExtra:
        pytest.skip("no C++ compiler")
    compiled = torch.compile(learned_quantize, dynamic=False)
    values = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for quantize in (learned_quantize, compiled):
        x = values.clone().requires_grad_()
        scale = torch.tensor(0.13 if axis is None else [0.13, 0.04], requires_grad=True)
        zero = torch.tensor(3.0, requires_grad=True) if axis is None else None
        output = quantize(x, scale, zero, 0, 15, axis)
        output.square().sum().backward()
        found.append((output.detach(), x.grad, scale.grad, *([] if zero is None else [zero.grad])))
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_change_of_units_changes_nothing_else() -> None:
    found = []
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for unit in (1.0, 4.0, 1e-3, 7.3):
        x, scale = (unit * values).requires_grad_(), torch.tensor(0.11 * unit, requires_grad=True)
        output = learned_quantize(x, scale, None, -8, 7, None)
        (output / unit).sum().backward()
        assert scale.grad is not None
        assert x.grad is not None
        found.append((output.detach() / unit, scale.grad * unit, x.grad * unit))
    for other in found[1:]:
        for one, changed in zip(found[0], other):
            torch.testing.assert_close(changed, one, rtol=1e-4, atol=1e-5)


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
    assert len({id(each.growth) for each in learned}) == 2
    trainable = graph(inputs)[0]
    assert torch.equal(before, trainable)
    trainable.square().mean().backward()
    for each in learned:
        assert each.growth.grad is not None
        assert (each.shift is None) == (each.node.args[2] is None)
        with torch.no_grad():
            each.growth.add_(torch.rand(each.growth.shape, generator=torch.Generator().manual_seed(2)) / 10)
            if each.shift is not None:
                each.shift.fill_(-2.7 / 255)
                assert float(each.zero_point) == pytest.approx(117.3)
    changed = graph(inputs)[0]
    settle(graph, learned)
    targets = [node.target for node in graph.module.graph.nodes if node.op == "call_function"]
    assert targets.count(FAKE_QUANTIZE) == 3
    assert torch.equal(graph(inputs)[0], changed)
    assert not torch.equal(changed, before)
    assert {name for name, _ in graph.module.named_parameters()} == {"weight"}
    assert int(graph.module.get_buffer("zero")) == 117


STEP = 0.01
GENTLE = 1e-3
RATE = STEP / GENTLE
"""What a loss is multiplied by so that no gradient meets its bound, and the rate that makes up for it."""


@pytest.fixture
def stepped() -> tuple[list[LearnedQuantizer], Tensor, Tensor, Tensor]:
    """The quantizers after a step of SGD, and the gradients of scales, scale and zero point in the tensors' units."""
    graph = graph_of(Shared(), images())
    learned = learn(graph)
    (GENTLE * graph(images())[0].square().mean()).backward()
    weight = dict(graph.module.named_parameters())["weight"].detach()
    scales, scale = torch.full((4,), 0.01, requires_grad=True), torch.tensor(0.02, requires_grad=True)
    zero = torch.tensor(120.0, requires_grad=True)
    read = [learned_quantize(images() + more, scale, zero, 0, 255, None) for more in (0, 1)]
    output = nn.functional.conv2d(sum(read), learned_quantize(weight, scales, None, -127, 127, 0))
    (GENTLE * output.square().mean()).backward()
    torch.optim.SGD([each for each in graph.module.parameters() if each.grad is not None], RATE).step()
    assert scales.grad is not None
    assert scale.grad is not None
    assert zero.grad is not None
    return learned, scales.grad, scale.grad, zero.grad


def test_a_step_of_sgd_is_that_of_lsq(stepped: tuple[list[LearnedQuantizer], Tensor, Tensor, Tensor]) -> None:
    """Scales and offset, which is -zero * scale, move in the units of what is quantized by rate, factor and gradient.

    All values that share a scale count, those of both quantizers that read it.
    """
    learned, of_scales, of_scale, of_zero = stepped
    activation, weights = learned[0], learned[-1]
    assert weights.factor == pytest.approx((27 * 127) ** -0.5)
    assert activation.factor == pytest.approx((2 * images()[0].numel() * 255) ** -0.5)
    torch.testing.assert_close(weights.scale, 0.01 - RATE * weights.factor * of_scales)
    torch.testing.assert_close(activation.scale, 0.02 - RATE * activation.factor * of_scale)
    of_offset = -of_zero / 0.02
    assert abs(float(of_offset)) > 1e-4 * GENTLE
    offset = -(activation.zero_point - 120) * 0.02
    torch.testing.assert_close(offset, -RATE * activation.factor * of_offset, rtol=1e-2, atol=1e-8)


@pytest.mark.parametrize("unit", [0.01, 1.0, 30.0])
def test_a_step_of_adam_is_the_same_share_of_each_scale(unit: float) -> None:
    graph = graph_of(Shared(), images())
    with torch.no_grad():
        for name, tensor in (*graph.module.named_parameters(), *graph.module.named_buffers()):
            if name in ("weight", "scales"):
                tensor.mul_(unit)
    learned = learn(graph)
    graph(images())[0].square().mean().backward()
    parameters = {each for one in learned for each in (one.growth, one.shift) if each is not None}
    torch.optim.AdamW(parameters, STEP, eps=0.0, weight_decay=0.0).step()
    assert learned[-1].start.unique() == pytest.approx(0.01 * unit)
    for each in learned:
        torch.testing.assert_close((each.scale / each.start - 1).abs(), torch.full_like(each.start, STEP))
    assert abs(float(learned[0].zero_point) - 120) == pytest.approx(STEP * 255, rel=1e-4)


def test_no_step_is_without_bound() -> None:
    """Of one channel weights and scale nearly vanish: before a batch norm its gradients explode."""
    graph = graph_of(Shared(), images())
    with torch.no_grad():
        dict(graph.module.named_parameters())["weight"][1] *= 1e-5
        dict(graph.module.named_buffers())["scales"][1] *= 1e-5
    learned = learn(graph)
    output = graph(images())[0]
    torch.nn.functional.batch_norm(output, None, None, training=True, eps=1e-12)[:, :, 0, 0].square().sum().backward()
    gradients = learned[-1].growth.grad
    assert gradients is not None
    assert float(gradients[1].abs()) == STEEPEST
    assert 0 < float(gradients[0].abs()) < STEEPEST


def test_zero_points_follow_their_values() -> None:
    """Trained on values that lie elsewhere than the range does, the range goes there."""
    graph = graph_of(Shared(), images())
    learned = learn(graph)
    first = learned[0]
    assert first.shift is not None
    optimizer = torch.optim.SGD([first.shift], 20.0)
    x = images() + 3
    for _ in range(200):
        optimizer.zero_grad()
        quantized = learned_quantize(x, first.start, shifted(first.zero, first.shift, 0, 255), 0, 255, None)
        (quantized - x).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            first.clamp()
    begun = torch.ops.temper.fake_quantize(x, first.start, first.zero, 0, 255, None)
    assert float(first.zero_point) < 60
    assert float((quantized - x).square().mean()) < 0.1 * float((begun - x).square().mean())


def test_scales_stay_above_zero_and_zero_points_among_the_integers() -> None:
    graph = graph_of(Shared(), images())
    for each in learn(graph):
        with torch.no_grad():
            each.growth.fill_(-1.0)
            if each.shift is not None:
                each.shift.fill_(2.0)
            each.clamp()
        assert bool((each.scale > 0).all())
        assert each.shift is None or float(each.zero_point) == 255
