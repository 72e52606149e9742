"""From a graph to an exported program, which torch's compilers read: integers are `quantized_decomposed` operators."""

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of `quantized_decomposed`
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.core.schema import TensorSpec
from temper.graph.facts import CONVOLUTIONS, is_call
from temper.graph.quantizers import DEQUANTIZE, QUANTIZE, packed
from temper.graph.surgery import add_tensor, clean, tensor_of


def exported(graph: Graph, lower: torch.dtype | None = None, largest_batch: int | None = None) -> ExportedProgram:
    """The graph as a program with quantizers in the operators of `quantized_decomposed`, and the batch as it was.

    With `lower`, float products are computed in that type where autocast holds that for safe. Outputs keep theirs. A
    batch that is dynamic has no limit but `largest_batch`, and a dynamic length has none.

    Raises: TrialError for a dynamic length beside a largest batch, which is for runtimes that plan memory ahead.
    """
    if largest_batch and graph.schema.dynamic_length:
        raise TrialError(
            f"this runtime plans its memory ahead, and the length of the inputs has no limit: "
            f"{'; '.join(map(str, graph.schema.inputs))}. Pad all examples to one length to have it tried"
        )
    module = packed(graph).module.eval()
    _unpack_single_channels(module)
    for node in list(module.graph.nodes):
        if node.target in (QUANTIZE, DEQUANTIZE):
            _decompose(module, node)
    clean(module)
    dimension: Any = Dim("batch", max=largest_batch) if largest_batch else Dim.DYNAMIC
    shapes = (tuple(_dynamic(spec, dimension) for spec in graph.schema.inputs),)
    with torch.no_grad():
        return torch.export.export(_Autocast(module, lower), graph.example, dynamic_shapes=shapes, strict=False)


def _dynamic(spec: TensorSpec, batch: Any) -> dict[int, Any]:
    """The axes of an input whose size is not fixed."""
    open_axes = (axis for axis, size in enumerate(spec.shape) if not isinstance(size, int))
    return {axis: Dim.DYNAMIC if axis else batch for axis in open_axes}


class _Autocast(nn.Module):
    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.dtype is None:
            return tuple(self.module(*inputs))
        with torch.autocast("cpu", self.dtype):
            outputs = self.module(*inputs)
        return tuple(each.float() if each.dtype is self.dtype else each for each in outputs)


def _unpack_single_channels(module: GraphModule) -> None:
    """Store the weights of convolutions of a single channel as floats, on their grids, so that they run in float.

    In integers Inductor (torch 2.13) hands on their outputs in another order of memory than the kernel wrote: of one
    channel, strides do not tell channels last from channels first.
    """
    for node in module.graph.nodes:
        weight = node.args[1] if is_call(node, CONVOLUTIONS) else None
        if not isinstance(weight, Node) or weight.target is not DEQUANTIZE or node.args[6:] not in ((), (1,)):
            continue
        integers, scale, zero = (tensor_of(module, each) for each in weight.args[:3])
        if integers is not None and integers.shape[1] == 1:
            values = DEQUANTIZE(integers, scale, zero, weight.args[3])
            node.update_arg(1, add_tensor(module, f"{weight.name}_float", values))


def _decompose(module: GraphModule, node: Node) -> None:
    """Replace a quantize or dequantize node by its operator of `quantized_decomposed`."""
    source, scale_node, zero_node, axis = node.args
    scale, zero = tensor_of(module, scale_node), tensor_of(module, zero_node)
    assert scale is not None
    assert zero is not None
    which = "quantize" if node.target is QUANTIZE else "dequantize"
    limits = torch.iinfo(zero.dtype)
    if axis is None:
        grid: tuple[Any, ...] = (float(scale), int(zero))
        operator = getattr(torch.ops.quantized_decomposed, f"{which}_per_tensor").default
    else:
        scales = add_tensor(module, f"{node.name}_scales", scale)
        grid = (scales, add_tensor(module, f"{node.name}_zero_points", zero.long()), axis)
        operator = getattr(torch.ops.quantized_decomposed, f"{which}_per_channel").default
    with module.graph.inserting_before(node):
        new = module.graph.call_function(operator, (source, *grid, limits.min, limits.max, zero.dtype))
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
