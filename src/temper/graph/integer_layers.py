"""Layers whose kernels read integer weights and quantize activations themselves: whole operators for export.

`integer_layers` replaces linear layers behind a `dynamic_quantize`, and embeddings with weights in groups, by one
operator each, which `temper.graph.onnx_export` writes as the kernel that runtimes have for it. Each computes here what
the nodes that it replaces computed.

Reference: ONNX, DynamicQuantizeLinear and MatMulInteger; ONNX Runtime, contributed operators MatMulNBits and
GatherBlockQuantized.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import Argument
from torch.nn import functional as F

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.graph.quantizers import dynamic_quantize, fake_quantize, is_dynamic_quantizer, is_quantizer
from temper.graph.surgery import add_tensor, clean, tensor_of

aten = torch.ops.aten


@torch.library.custom_op("temper::tensor_linear", mutates_args=())
def tensor_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (..., inputs), quantized as one tensor, times weight (inputs, outputs), int8, with scale (outputs,)."""
    return F.linear(dynamic_quantize(x, None), (weight.to(scale.dtype) * scale).T)


@tensor_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


@torch.library.custom_op("temper::block_linear", mutates_args=())
def block_linear(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """x (..., inputs), quantized in blocks, times a packed weight (outputs, blocks, bytes), scale (outputs, blocks).

    The blocks of x are as long as the weight's.
    """
    values = _unpacked(weight, bits) * scale[..., None]
    return F.linear(dynamic_quantize(x, values.shape[-1]), values.flatten(1))


@block_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("temper::block_embedding", mutates_args=())
def block_embedding(weight: Tensor, indices: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Rows of a packed weight (rows, bytes) with scale (rows, blocks)."""
    values = _unpacked(weight[indices], bits).reshape(*indices.shape, scale.shape[1], -1)
    return (values * scale[indices][..., None]).flatten(-2)


@block_embedding.register_fake
def _(weight: Tensor, indices: Tensor, scale: Tensor, bits: int) -> Tensor:
    return scale.new_empty((*indices.shape, weight.shape[1] * 8 // bits))


TENSOR_LINEAR = torch.ops.temper.tensor_linear.default
BLOCK_LINEAR = torch.ops.temper.block_linear.default
BLOCK_EMBEDDING = torch.ops.temper.block_embedding.default


def integer_layers(graph: Graph) -> Graph:
    """A copy in which layers that quantize their activations, or look up rows in blocks, are one operator each.

    A linear layer with one scale an output behind groups of activations stays a linear layer: the runtime that
    quantizes so is told the size of the groups (`activation_group`) and does it unasked.
    """
    copy = graph.copy()
    module = copy.module
    for node in list(module.graph.nodes):
        if node.target is aten.linear.default and is_quantizer(node.args[1]) and is_dynamic_quantizer(node.args[0]):
            _replace_linear(module, node)
        elif node.target is aten.embedding.default and is_quantizer(node.args[0]):
            _replace_embedding(module, node)
    clean(module)
    return copy


def activation_group(graph: Graph) -> int | None:
    """How many neighbouring activations share a scale at run time, or None where no layer quantizes in groups.

    Raises: TrialError if layers disagree: runtimes take one number for all.
    """
    groups = {node.args[1] for node in graph.module.graph.nodes if is_dynamic_quantizer(node)} - {None}
    if len(groups) > 1:
        sizes = ", ".join(sorted(map(str, groups)))
        raise TrialError(f"layers quantize their activations in groups of {sizes}, and runtimes take one size for all")
    return next(iter(groups), None)


def _replace_linear(module: GraphModule, layer: Node) -> None:
    quantizer, weight = layer.args[0], layer.args[1]
    assert isinstance(quantizer, Node)
    assert isinstance(weight, Node)
    source = quantizer.args[0]
    assert isinstance(source, Node)
    integers, scale, bits = _integers(module, weight)
    arguments: tuple[Argument, ...]
    if quantizer.args[1] is None:
        held = add_tensor(module, f"{weight.name}_integers", integers.T.contiguous())
        operator, arguments = TENSOR_LINEAR, (source, held, weight.args[1])
    elif scale.dim() == 2:
        blocks = _packed(integers.reshape(*scale.shape, -1), bits)
        held = add_tensor(module, f"{weight.name}_integers", blocks)
        operator, arguments = BLOCK_LINEAR, (source, held, weight.args[1], bits)
    else:
        layer.replace_input_with(quantizer, source)
        return
    with module.graph.inserting_before(layer):
        product = module.graph.call_function(operator, arguments)
        if len(layer.args) > 2 and layer.args[2] is not None:
            product = module.graph.call_function(aten.add.Tensor, (product, layer.args[2]))
    layer.replace_all_uses_with(product)
    module.graph.erase_node(layer)


def _replace_embedding(module: GraphModule, layer: Node) -> None:
    weight = layer.args[0]
    assert isinstance(weight, Node)
    integers, _, bits = _integers(module, weight)
    held = add_tensor(module, f"{weight.name}_integers", _packed(integers, bits))
    with module.graph.inserting_before(layer):
        rows = module.graph.call_function(BLOCK_EMBEDDING, (held, layer.args[1], weight.args[1], bits))
    layer.replace_all_uses_with(rows)
    module.graph.erase_node(layer)


def _integers(module: GraphModule, quantizer: Node) -> tuple[Tensor, Tensor, int]:
    """The integers (rows, columns) that a symmetric quantizer makes of its weight, its scale, and the bits needed."""
    source, scale_node, zero_node, low, high, axis = quantizer.args
    weight, scale, zero_point = (tensor_of(module, node) for node in (source, scale_node, zero_node))
    assert weight is not None
    assert scale is not None
    assert zero_point is not None
    assert isinstance(low, int)
    assert isinstance(high, int)
    assert isinstance(axis, int)
    if bool(zero_point.any()):
        raise TrialError(f"the weight {source} has zero points other than 0, which integer layers do not take")
    grid = fake_quantize(weight.detach(), scale, zero_point, low, high, axis)
    integers = torch.ops.temper.quantize(grid, scale, zero_point.to(torch.int8), axis)
    return integers, scale, 4 if low >= -8 and high <= 7 else 8


def _packed(integers: Tensor, bits: int) -> Tensor:
    """Signed integers (..., n) as unsigned bytes (..., n * bits / 8): half the range higher, first in the low bits."""
    unsigned = (integers.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    if bits == 8:
        return unsigned
    return torch.bitwise_or(unsigned[..., 0::2], unsigned[..., 1::2] * 16).contiguous()


def _unpacked(held: Tensor, bits: int) -> Tensor:
    """The signed integers (..., n) of `_packed`, as float32."""
    unsigned = held if bits == 8 else torch.stack([held % 16, held // 16], -1).flatten(-2)
    signed: Tensor = unsigned.to(torch.float32) - (1 << (bits - 1))
    return signed
