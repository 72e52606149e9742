"""The trainable form of a quantized graph: quantizers whose scales, and zero points, are parameters.

Each `fake_quantize` node becomes plain operators that a compiler fuses with their neighbours; the gradient of rounding
is that of the identity (straight through). What comes back out of `settle` computes, bit for bit, what was trained.

Of a scale its growth is trained, the multiple of what it began with, and of a zero point its shift, in ranges of
integers. With SGD the factors of the gradients make that the same as training scale and offset in the units of what is
quantized (LSQ, LSQ+). An optimizer whose steps have one length whatever the gradient, such as Adam, moves all scales
alike in proportion, large ones and small ones.

References: Esser et al. 2020, LSQ (arXiv 1902.08153), equations 1 to 5; Bhalgat et al. 2020, LSQ+ (arXiv 2004.09576).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.quantizers import FAKE_QUANTIZE, is_quantizer
from temper.graph.surgery import clean, set_tensor, tensor_of

LEAST_SHARE = 1e-3
"""No scale may shrink below this share of what it began with: at zero it would have no gradient that brings it back."""
STEEPEST = 10.0
"""The largest gradient of a growth or a shift. Where a channel's weights nearly vanish before a batch norm, gradients
have no bound: a single step can make such a scale thousands of times as large, and the channel all zeros."""


def learned_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int, axis: int | None
) -> Tensor:
    """Round x to the grid of integers low..high and back, with the gradients of LSQ.

    With v = x / scale and z the rounded `zero_point`: x gets the gradient of the output where v + z lies in low..high,
    ends included, and none outside. The scale gets round(v) - v of it inside and the nearer end, less z, outside; the
    zero point, without which z is 0, gets none inside and -scale outside. Values as `temper::fake_quantize`.
    """
    result: Tensor = _LearnedQuantize.apply(x, scale, zero_point, low, high, axis)  # type: ignore[no-untyped-call]
    return result


class _LearnedQuantize(torch.autograd.Function):
    """Of plain operators both ways, which a compiler fuses; derived by hand, the way back reads x and no more."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int, axis: int | None
    ) -> Tensor:
        ctx.save_for_backward(x, scale, *([] if zero_point is None else [zero_point]))
        ctx.limits, ctx.axis = (low, high), axis
        step, lowest, highest = _grid(x, scale, zero_point, (low, high), axis)
        return torch.clamp(torch.round(x / step), lowest, highest) * step

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *zero_points = ctx.saved_tensors
        step, lowest, highest = _grid(x, scale, zero_points[0] if zero_points else None, ctx.limits, ctx.axis)
        v = x / step
        inside = (v >= lowest) & (v <= highest)
        of_x = torch.where(inside, upstream, 0.0)
        of_scale = upstream * (torch.clamp(torch.round(v), lowest, highest) - torch.where(inside, v, 0.0))
        of_zero = _total((of_x - upstream) * step, None) if zero_points else None
        return of_x, _total(of_scale, ctx.axis).reshape(scale.shape), of_zero, None, None, None


def _total(x: Tensor, axis: int | None) -> Tensor:
    """The sum over all axes but this one.

    Over all of them in two steps, each channel first: batch norms sum their gradients so, and a compiler makes one pass
    through memory of both.
    """
    kept = 1 if axis is None else axis
    sums = x.sum([index for index in range(x.dim()) if index != kept])
    return sums.sum() if axis is None else sums


def _grid(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, limits: tuple[int, int], axis: int | None
) -> tuple[Tensor, Any, Any]:
    """The scale, shaped to go with x, and the ends of the integers less the zero point."""
    if zero_point is None:
        return along(scale, x, axis), *limits
    z = torch.round(zero_point)
    return along(scale, x, axis), limits[0] - z, limits[1] - z


def along(scale: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """The scale, one or one for each index of the axis of x, shaped to go with x."""
    return scale if axis is None else scale.reshape([-1 if index == axis else 1 for index in range(x.dim())])


@dataclass(frozen=True, kw_only=True)
class LearnedQuantizer:
    """A quantizer in training: its node, its parameters, and the factor of the gradients of those.

    `start` is the scale and `zero` the zero point that it began with; `growth`, of the shape of the scale, and `shift`
    are what is trained of them. The factor is 1 / sqrt(N * high), where N values share a scale (of activations, values
    of one example); it holds for gradients in the units of what is quantized.
    """

    node: Node
    growth: nn.Parameter
    shift: nn.Parameter | None
    start: Tensor
    zero: Tensor
    low: int
    high: int
    factor: float

    @property
    def bits(self) -> int:
        return (self.high - self.low).bit_length()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the growth, and the shift where there is one."""
        return [each for each in (self.growth, self.shift) if each is not None]

    def fix(self) -> None:
        """Leave the scale and the zero point as they are."""
        for each in self.parameters:
            each.requires_grad_(False)

    @property
    def scale(self) -> Tensor:
        return torch.mul(self.start, self.growth.detach())

    @property
    def zero_point(self) -> Tensor:
        """In integers, not yet rounded to one."""
        return self.zero if self.shift is None else shifted(self.zero, self.shift.detach(), self.low, self.high)

    def clamp(self) -> None:
        """Keep the scale away from zero, and the zero point among the integers, after a step of the optimizer."""
        self.growth.clamp_(min=LEAST_SHARE)
        if self.shift is not None:
            reach = self.high - self.low
            self.shift.clamp_((self.low - self.zero) / reach, (self.high - self.zero) / reach)


def shifted(zero: Tensor, shift: Tensor, low: int, high: int) -> Tensor:
    """The zero point that began as `zero`, moved by so many ranges of integers."""
    return zero + shift * (high - low)


def learn(graph: Graph) -> list[LearnedQuantizer]:
    """Make the quantizers' scales trainable, in place, and the zero points of activations that are not zero.

    Quantizers that read the same scale go on sharing it.
    """
    module = graph.module
    quantizers = [each for each in module.graph.nodes if is_quantizer(each)]
    sharing = Counter[str]()
    for node in quantizers:
        sharing[str(node.args[1].target)] += _sharing(graph, node)
    found: list[LearnedQuantizer] = []
    known: dict[str, tuple[nn.Parameter, Node]] = {}
    for node in quantizers:
        source, scale_node, zero_node, low, high, axis = node.args
        start, zero = tensor_of(module, scale_node), tensor_of(module, zero_node)
        assert start is not None
        assert zero is not None
        factor = 1 / math.sqrt(sharing[str(scale_node.target)] * high)
        growth, scale = _trained(node, scale_node, torch.ones_like(start), factor / start**2, (torch.mul,), known)
        shift, point = None, None
        if axis is None and bool(zero != 0):
            of_shift = factor / (start * (high - low)) ** 2
            shift, point = _trained(node, zero_node, torch.zeros_like(start), of_shift, (shifted, low, high), known)
        node.meta["fixed"] = (scale_node, zero_node)
        node.target = learned_quantize
        node.args = (source, scale, point, low, high, axis)
        found.append(
            LearnedQuantizer(
                node=node, growth=growth, shift=shift, start=start, zero=zero, low=low, high=high, factor=factor
            )
        )
    module.recompile()
    return found


def settle(graph: Graph, learned: Iterable[LearnedQuantizer]) -> None:
    """Turn the quantizers back into `fake_quantize` nodes with fixed scales and whole zero points, in place."""
    for each in learned:
        node = each.node
        source, _, _, low, high, axis = node.args
        scale_node, zero_node = node.meta.pop("fixed")
        set_tensor(graph.module, str(scale_node.target), each.scale)
        set_tensor(graph.module, str(zero_node.target), torch.round(each.zero_point).to(torch.int32))
        node.target = FAKE_QUANTIZE
        node.args = (source, scale_node, zero_node, low, high, axis)
    clean(graph.module)


def _sharing(graph: Graph, quantizer: Node) -> int:
    """How many values share one scale in this quantizer: of a stored tensor, or of one example of an activation."""
    source, scale = quantizer.args[0], tensor_of(graph.module, quantizer.args[1])
    stored = tensor_of(graph.module, source)
    assert scale is not None
    if stored is not None:
        return stored.numel() // scale.numel()
    assert isinstance(source, Node)
    value = source.meta.get("val")
    assert isinstance(value, Tensor), f"{source.name}: nothing is known of its shape"
    return max(1, math.prod(int(size) for size in value.shape[1:]))


def _trained(
    quantizer: Node,
    stored: Node,
    value: Tensor,
    factor: Tensor,
    computed: tuple[Callable[..., Tensor], *tuple[int, ...]],
    known: dict[str, tuple[nn.Parameter, Node]],
) -> tuple[nn.Parameter, Node]:
    """A parameter whose gradients the factor multiplies, within bounds, and the node in the stored tensor's place.

    It is `computed` from that tensor, the parameter and the integers behind the function's name. Both are those that
    are known for the stored tensor already, or new ones before the quantizer.
    """
    name = str(stored.target)
    if name not in known:
        nodes, module = quantizer.graph, quantizer.graph.owning_module
        assert module is not None
        parameter = nn.Parameter(value.float())
        parameter.register_hook(partial(_bounded, factor))  # type: ignore[no-untyped-call]
        own = f"{name}_trained".replace(".", "_")
        module.register_parameter(own, parameter)
        with nodes.inserting_before(quantizer):
            function, *integers = computed
            known[name] = parameter, nodes.call_function(function, (stored, nodes.get_attr(own), *integers))
    return known[name]


def _bounded(factor: Tensor, gradient: Tensor) -> Tensor:
    return torch.clamp(factor * gradient, -STEEPEST, STEEPEST)
