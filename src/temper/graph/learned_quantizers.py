"""The trainable form of a quantized graph: quantizers whose scales, and zero points, are parameters.

Each `fake_quantize` node becomes plain operators that a compiler fuses with their neighbours; the gradient of rounding
is that of the identity (straight through). What comes back out of `settle` computes, bit for bit, what was trained.

References: Esser et al. 2020, LSQ (arXiv 1902.08153), equations 1 to 5; Bhalgat et al. 2020, LSQ+ (arXiv 2004.09576).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.quantizers import FAKE_QUANTIZE, is_quantizer
from temper.graph.surgery import tensor_of

LEAST_SHARE = 1e-3
"""No scale may shrink below this share of what it began with: at zero it would have no gradient that brings it back."""


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

    The factor is 1 / sqrt(N * high), where N values share a scale (of activations, values of one example).
    """

    node: Node
    scale: nn.Parameter
    zero_point: nn.Parameter | None
    low: int
    high: int
    factor: float
    least: Tensor

    def clamp(self) -> None:
        """Keep the scale away from zero, and the zero point among the integers, after a step of the optimizer."""
        self.scale.clamp_(min=self.least)
        if self.zero_point is not None:
            self.zero_point.clamp_(self.low, self.high)


def learn(graph: Graph) -> list[LearnedQuantizer]:
    """Make the quantizers' scales trainable, in place, and the zero points of activations that are not zero.

    Quantizers that read the same scale go on sharing it.
    """
    module = graph.module
    found: list[LearnedQuantizer] = []
    parameters: dict[str, nn.Parameter] = {}
    for node in [each for each in module.graph.nodes if is_quantizer(each)]:
        source, scale_node, zero_node, low, high, axis = node.args
        scale = _parameter(graph, scale_node, parameters)
        zero = tensor_of(module, zero_node)
        assert zero is not None
        moves = axis is None and bool(zero != 0)
        zero_point = _parameter(graph, zero_node, parameters) if moves else None
        node.meta["zero_point"] = zero_node
        node.target = learned_quantize
        node.args = (source, scale_node, zero_node if moves else None, low, high, axis)
        found.append(
            LearnedQuantizer(
                node=node,
                scale=scale,
                zero_point=zero_point,
                low=low,
                high=high,
                factor=1 / math.sqrt(_sharing(graph, source, scale) * high),
                least=scale.detach().abs() * LEAST_SHARE,
            )
        )
    for each in {id(one.scale): one for one in reversed(found)}.values():
        for parameter in (each.scale, each.zero_point):
            if parameter is not None:
                parameter.register_hook(partial(torch.mul, torch.tensor(each.factor)))  # type: ignore[no-untyped-call]
    module.recompile()
    return found


def settle(graph: Graph, learned: Iterable[LearnedQuantizer]) -> None:
    """Turn the quantizers back into `fake_quantize` nodes with fixed scales and whole zero points, in place."""
    module = graph.module
    for each in learned:
        node = each.node
        source, scale_node, _, low, high, axis = node.args
        zero_node = node.meta.pop("zero_point")
        _buffer(graph, scale_node, each.scale.detach())
        if each.zero_point is not None:
            _buffer(graph, zero_node, torch.round(each.zero_point.detach()).to(torch.int32))
        node.target = FAKE_QUANTIZE
        node.args = (source, scale_node, zero_node, low, high, axis)
    module.recompile()


def _sharing(graph: Graph, source: object, scale: Tensor) -> int:
    """How many values share one scale: of a stored tensor, or of one example of an activation."""
    stored = tensor_of(graph.module, source)
    if stored is not None:
        return stored.numel() // scale.numel()
    assert isinstance(source, Node)
    value = source.meta.get("val")
    sizes = value.shape[1:] if isinstance(value, Tensor) else ()
    return max(1, math.prod(int(size) for size in sizes))


def _parameter(graph: Graph, node: object, known: dict[str, nn.Parameter]) -> nn.Parameter:
    """The stored tensor that the node reads, as a float parameter of the same name."""
    assert isinstance(node, Node)
    name = str(node.target)
    if name not in known:
        value = tensor_of(graph.module, node)
        assert value is not None
        delattr(graph.module, name)
        known[name] = nn.Parameter(value.detach().clone().float())
        graph.module.register_parameter(name, known[name])
    return known[name]


def _buffer(graph: Graph, node: object, value: Tensor) -> None:
    assert isinstance(node, Node)
    name = str(node.target)
    if name in graph.module._parameters:
        delattr(graph.module, name)
        graph.module.register_buffer(name, value.clone())
