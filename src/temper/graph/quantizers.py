"""Quantizer nodes: integers simulated in float, real integers, and the step between the two.

`fake_quantize` stands in the graph while techniques work; `packed` replaces each by `quantize` and `dequantize` for
export, with the weights stored as integers. They are custom operators so that they stay whole until
`temper.graph.onnx_export` turns them into QuantizeLinear and DequantizeLinear, whose arithmetic they share.
`dynamic_quantize` takes its scale from the values themselves: `temper.graph.integer_layers` packs the layers behind it.

Reference: Jacob et al. 2018 (arXiv 1712.05877), equation 1: real = scale * (integer - zero_point).
"""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.graph.surgery import add_tensor, clean, tensor_of


@torch.library.custom_op("temper::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    """Round x to the grid of integers low..high and back.

    `scale` (float32) and `zero_point` (int32) hold one value, or one for each index of `axis`. A matrix x
    (rows, columns) with axis 0 may also have them as (rows, groups), each for columns / groups neighbours in a row.
    """
    scale, offset = _along(scale, x, axis), _along(zero_point.to(x.dtype), x, axis)
    return (torch.clamp(torch.round(x / scale) + offset, low, high) - offset) * scale


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("temper::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """Float to the integers of the zero point's dtype (int8, uint8 or int32), clamped to its range."""
    limits = torch.iinfo(zero_point.dtype)
    integers = torch.round(x / _along(scale, x, axis)) + _along(zero_point.to(x.dtype), x, axis)
    return torch.clamp(integers, limits.min, limits.max).to(zero_point.dtype)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    return torch.empty_like(x, dtype=zero_point.dtype)


@torch.library.custom_op("temper::dequantize", mutates_args=())
def dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """Integers to float: scale * (x - zero_point)."""
    return (x.to(scale.dtype) - _along(zero_point.to(scale.dtype), x, axis)) * _along(scale, x, axis)


@dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    return torch.empty_like(x, dtype=scale.dtype)


@torch.library.custom_op("temper::dynamic_quantize", mutates_args=())
def dynamic_quantize(x: Tensor, group: int | None) -> Tensor:
    """Round x to 8 bits and back, on a grid taken from x itself.

    With a `group`, so many neighbours along the last dimension share a symmetric scale, -127..127; without, the whole
    tensor has one grid of 0..255 that reaches from its least to its greatest value, with zero on it.
    """
    scale = dynamic_scale(x, group)
    if group is None:
        offset = torch.clamp(torch.round(-x.amin().clamp_max(0) / scale), 0, 255)
        return (torch.clamp(torch.round(x / scale) + offset, 0, 255) - offset) * scale
    groups = x.reshape(*x.shape[:-1], -1, group)
    return (torch.round(groups / scale) * scale).flatten(-2)


@dynamic_quantize.register_fake
def _(x: Tensor, group: int | None) -> Tensor:
    return torch.empty_like(x)


def dynamic_scale(x: Tensor, group: int | None) -> Tensor:
    """The scales that `dynamic_quantize` takes from x: a scalar, or one for each group (..., groups, 1)."""
    if group is None:
        return _nonzero((x.amax().clamp_min(0) - x.amin().clamp_max(0)) / 255)
    return _nonzero(x.reshape(*x.shape[:-1], -1, group).abs().amax(-1, keepdim=True) / 127)


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


FAKE_QUANTIZE = torch.ops.temper.fake_quantize.default
QUANTIZE = torch.ops.temper.quantize.default
DEQUANTIZE = torch.ops.temper.dequantize.default
DYNAMIC_QUANTIZE = torch.ops.temper.dynamic_quantize.default


MOVEMENTS = (
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.pad.default,
    torch.ops.aten.constant_pad_nd.default,
    torch.ops.aten.flatten.using_ints,
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.max_pool2d.default,
)
"""Operators whose outputs are some of their inputs' values, or zero: input and output share a quantizer's range."""
PADS = (torch.ops.aten.pad.default, torch.ops.aten.constant_pad_nd.default)
PADS_WITH_OWN_VALUES = ("reflect", "replicate", "circular")


def is_quantizer(node: object) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is FAKE_QUANTIZE


def is_dynamic_quantizer(node: object) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is DYNAMIC_QUANTIZE


def is_movement(node: object) -> bool:
    """Whether the node only moves values or adds zeros; a pad with any other fill brings a value of its own."""
    if not isinstance(node, Node) or node.op != "call_function" or node.target not in MOVEMENTS:
        return False
    return node.target not in PADS or pads_zeros(node) or _padding(node)[0] in PADS_WITH_OWN_VALUES


def pads_zeros(node: object) -> bool:
    """Whether the node surrounds values with zeros."""
    if not isinstance(node, Node) or node.op != "call_function" or node.target not in PADS:
        return False
    mode, fill = _padding(node)
    return mode == "constant" and not fill


def _padding(pad: Node) -> tuple[object, object]:
    """Mode and fill of a pad: pad(x, sizes, mode, value) or constant_pad_nd(x, sizes, value)."""
    modes = ("mode",) if pad.target is torch.ops.aten.pad.default else ()
    given = dict(zip((*modes, "value"), pad.args[2:])) | dict(pad.kwargs)
    return given.get("mode", "constant"), given.get("value")


def remove_quantizers(graph: Graph) -> None:
    """Take every `fake_quantize` out again, in place: what it rounded is read as it is."""
    for node in [each for each in graph.module.graph.nodes if is_quantizer(each)]:
        source = node.args[0]
        assert isinstance(source, Node)
        node.replace_all_uses_with(source)
        graph.module.graph.erase_node(node)
    clean(graph.module)


def packed(graph: Graph) -> Graph:
    """A copy in which integers are real: weights are stored as integers, activations pass through them.

    Between two quantizers of one grid, data movements move the integers themselves.
    """
    copy = graph.copy()
    module = copy.module
    for node in [each for each in module.graph.nodes if is_quantizer(each)]:
        _pack(module, node)
    for node in [each for each in module.graph.nodes if each.target is QUANTIZE]:
        _move_integers(module, node)
    clean(module)
    return copy


def _move_integers(module: GraphModule, quantized: Node) -> None:
    """Turn quantize(movement(dequantize(integers))) into movement(integers) where both grids are the same."""
    movement = quantized.args[0]
    if not isinstance(movement, Node) or not is_movement(movement):
        return
    source = movement.args[0]
    if not isinstance(source, Node) or source.target is not DEQUANTIZE or not same_grid(module, source, quantized):
        return
    arguments, keywords = (source.args[0], *movement.args[1:]), movement.kwargs
    if movement.target in PADS:
        if not pads_zeros(movement):
            return
        zero = tensor_of(module, quantized.args[2])
        assert zero is not None
        mode = ("constant",) if movement.target is torch.ops.aten.pad.default else ()
        arguments, keywords = (*arguments[:2], *mode, int(zero)), {}
    assert callable(movement.target)
    with module.graph.inserting_before(quantized):
        moved = module.graph.call_function(movement.target, arguments, keywords)
    quantized.replace_all_uses_with(moved)
    module.graph.erase_node(quantized)


def same_grid(module: GraphModule, one: Node, other: Node) -> bool:
    """Whether two quantizers, or the halves of two, have equal scales, zero points and limits for the whole tensor."""
    pairs = [(tensor_of(module, a), tensor_of(module, b)) for a, b in zip(one.args[1:3], other.args[1:3])]
    alike = one.args[-1] is None and one.args[3:] == other.args[3:]
    return alike and all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def _pack(module: GraphModule, node: Node) -> None:
    source, scale_node, zero_node, low, high, axis = node.args
    assert isinstance(source, Node)
    assert isinstance(low, int)
    assert isinstance(high, int)
    assert axis is None or isinstance(axis, int)
    scale, zero_point = tensor_of(module, scale_node), tensor_of(module, zero_node)
    assert scale is not None
    assert zero_point is not None
    typed = zero_point.to(integer_type(low, high))
    typed_node = add_tensor(module, f"{node.name}_zero_point", typed)
    weight = tensor_of(module, source)
    with module.graph.inserting_before(node):
        if weight is not None:
            # The range may be narrower than the type's, so the clamp is done here and not by the type.
            grid = torch.ops.temper.fake_quantize(weight.detach(), scale, zero_point, low, high, axis)
            integers = torch.ops.temper.quantize(grid, scale, typed, axis)
            source_node = add_tensor(module, f"{source.name}_integers", integers)
        else:
            clamped = _clamped(module, source, scale, typed, (low, high), axis)
            source_node = module.graph.call_function(QUANTIZE, (clamped, scale_node, typed_node, axis))
        unpacked = module.graph.call_function(DEQUANTIZE, (source_node, scale_node, typed_node, axis))
    node.replace_all_uses_with(unpacked)
    module.graph.erase_node(node)


def _clamped(
    module: GraphModule, source: Node, scale: Tensor, zero_point: Tensor, integers: tuple[int, int], axis: int | None
) -> Node:
    """The activation cut to what the integers reach, where they are fewer than their type holds: it cuts later."""
    limits = torch.iinfo(zero_point.dtype)
    if integers == (limits.min, limits.max):
        return source
    low, high = ((bound - zero_point.to(scale.dtype)) * scale for bound in integers)
    if axis is None:
        return module.graph.call_function(torch.ops.aten.clamp.default, (source, low.item(), high.item()))
    value = source.meta.get("val")
    if not isinstance(value, Tensor):
        raise TrialError(f"the activation {source.name!r} has integers of its own on axis {axis}, and an unknown rank")
    bounds = [
        add_tensor(module, f"{source.name}_{name}", _along(bound, value, axis))
        for name, bound in (("low", low), ("high", high))
    ]
    return module.graph.call_function(torch.ops.aten.clamp.Tensor, (source, *bounds))


def integer_type(low: int, high: int) -> torch.dtype:
    """The narrowest of int8, uint8 and int32 that holds low..high."""
    for dtype in (torch.int8, torch.uint8):
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return dtype
    return torch.int32


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return values.reshape(())
    if values.dim() == 2:
        return values.repeat_interleave(x.shape[1] // values.shape[1], dim=1)
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)
