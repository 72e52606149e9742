"""Products with a stored matrix, as some models write linear layers, become such layers: techniques know those."""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from temper.graph.aliases import changed_in_place
from temper.graph.surgery import add_tensor, clean, tensor_of, users_of_tensor

aten = torch.ops.aten

PRODUCTS = (aten.mm.default, aten.matmul.default)


def with_linears(module: GraphModule) -> GraphModule:
    """The module with `x @ W` and `addmm(b, x, W)` as linear layers, for each parameter W that only such products read.

    The layer stores W transposed, (outputs, inputs). GPT-2 and its kin are written so.
    """
    changed = changed_in_place(module)
    found = {node: weight for node in module.graph.nodes if (weight := _matrix(module, node)) is not None}
    stored: dict[str, Node] = {}
    for node, weight in found.items():
        name = str(weight.target)
        if weight in changed or not all(user in found for user in users_of_tensor(module, name)):
            continue
        bias, x, _ = node.args if node.target is aten.addmm.default else (None, *node.args)
        if name not in stored:
            stored[name] = _transposed(module, weight)
        with module.graph.inserting_before(node):
            layer = module.graph.call_function(aten.linear.default, (x, stored[name], bias))
        layer.meta = dict(node.meta)
        node.replace_all_uses_with(layer)
        module.graph.erase_node(node)
    if stored:
        clean(module)
    return module


def _matrix(module: GraphModule, node: Node) -> Node | None:
    """The node that reads the matrix by which this one multiplies rows, or None if it is no such product."""
    if node.op != "call_function" or node.kwargs:
        return None
    bias = None
    if node.target is aten.addmm.default:
        bias, rows, weight = node.args
    elif node.target in PRODUCTS:
        rows, weight = node.args
    else:
        return None
    matrix = tensor_of(module, weight)
    fits = isinstance(matrix, nn.Parameter) and matrix.dim() == 2 and matrix.is_floating_point()
    if not fits or not isinstance(weight, Node) or tensor_of(module, rows) is not None:
        return None
    return weight if bias is None or _is_row(bias, weight) else None


def _is_row(bias: object, weight: Node) -> bool:
    """Whether the bias has one number for each output: `addmm` also takes matrices and single numbers."""
    form, matrix = (each.meta.get("val") if isinstance(each, Node) else None for each in (bias, weight))
    return isinstance(form, Tensor) and isinstance(matrix, Tensor) and form.shape == matrix.shape[1:]


def _transposed(module: GraphModule, weight: Node) -> Node:
    """A node that reads the matrix as a linear layer stores it, frozen if it was frozen."""
    matrix = tensor_of(module, weight)
    assert matrix is not None
    node = add_tensor(module, str(weight.target), matrix.detach().t().contiguous(), trainable=True)
    module.get_parameter(str(node.target)).requires_grad_(matrix.requires_grad)
    return node
