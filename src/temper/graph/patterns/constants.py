"""What a graph computes from its stored tensors alone, the same at every call."""

from collections import Counter
from operator import getitem

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from temper.core.facts import Fact
from temper.core.graph import Graph
from temper.graph.aliases import changed_in_place
from temper.graph.quantizers import is_quantizer
from temper.graph.surgery import tensor_of

GROWTH_BYTES = 1 << 16
"""What one stored result may take beyond the tensors that only it was computed from."""

aten = torch.ops.aten


def foldable_constants(graph: Graph) -> list[Node]:
    """The nodes whose result may be stored in their place, in graph order: the last ones that no input reaches.

    A result that is much larger than what it is computed from is left out, and so is whatever an in-place operator
    may change or a quantizer reads: the weights behind a quantizer must stay float.
    """
    constants = _constants(graph.module)
    reads = Counter(
        str(source.target)
        for node in graph.module.graph.nodes
        for source in node.all_input_nodes
        if source.op == "get_attr"
    )
    stored: dict[Node, set[Node]] = {}
    foldable = set()
    for node in graph.module.graph.nodes:
        if node not in constants:
            continue
        cone = {node}.union(*(stored.get(each, {each}) for each in node.all_input_nodes))
        stored[node] = cone
        value = node.meta.get("val")
        fits = isinstance(value, Tensor) and _bytes(value) <= GROWTH_BYTES + _owned_bytes(graph.module, cone, reads)
        if node.op == "call_function" and fits:
            foldable.add(node)
    return [node for node in constants if node in foldable and any(user not in foldable for user in node.users)]


def _constants(module: GraphModule) -> dict[Node, None]:
    """The nodes that no input reaches, without those that anything changes in place, in graph order."""
    changed = changed_in_place(module)
    constants: dict[Node, None] = {}
    for node in module.graph.nodes:
        if node in changed:
            continue
        known = node.op == "get_attr" and tensor_of(module, node) is not None
        if known or (repeatable(node) and all(each in constants for each in node.all_input_nodes)):
            constants[node] = None
    return constants


def repeatable(node: Node) -> bool:
    """Whether the node gives the same result whenever it is called with the same arguments, and does nothing else."""
    if node.op != "call_function" or is_quantizer(node):
        return False
    if node.target is getitem:
        return True
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten" or not node.target._schema.returns:
        return False
    if node.target is aten.batch_norm.default and node.args[5] and node.args[3] is not None:
        return False
    return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags


def _owned_bytes(module: GraphModule, cone: set[Node], reads: Counter[str]) -> int:
    """The bytes of the stored tensors that only nodes of the cone read: they need not be kept."""
    inside = Counter(str(source.target) for node in cone for source in node.all_input_nodes if source.op == "get_attr")
    sources = {str(node.target): node for node in cone if node.op == "get_attr"}
    tensors = (tensor_of(module, sources[name]) for name in sources if inside[name] == reads[name])
    return sum(_bytes(tensor) for tensor in tensors if tensor is not None)


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size() if all(isinstance(size, int) for size in value.shape) else 1 << 62


has_foldable_constants = Fact(
    "computes constants at every call", lambda graph, context: bool(foldable_constants(graph))
)
