"""Which values of a graph are changed in place, whatever name they go by."""

from torch._ops import OpOverload
from torch.fx import GraphModule, Node


def changed_in_place(module: GraphModule) -> set[Node]:
    """The nodes whose value an operator changes after it was computed, with all that share memory with them."""
    pending = [each for node in module.graph.nodes if _mutates(node) for each in (*node.all_input_nodes, node)]
    changed: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in changed:
            continue
        changed.add(node)
        pending.extend(user for user in node.users if _shares_memory(user))
        if _shares_memory(node):
            pending.extend(node.all_input_nodes)
    return changed


def _mutates(node: Node) -> bool:
    """Whether the node changes an argument; of a function that says nothing about itself, it is assumed."""
    if node.op != "call_function":
        return False
    return (not isinstance(node.target, OpOverload) and bool(node.is_impure())) or _schema_says(node, "is_mutable")


def _schema_says(node: Node, name: str) -> bool:
    return isinstance(node.target, OpOverload) and bool(getattr(node.target._schema, name))


def _shares_memory(node: Node) -> bool:
    """Whether the node's result may be a view of an argument: its schema says so, or it takes a part of a tuple."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return node.op == "call_function"
    schema = node.target._schema
    # These return their argument itself where there is nothing to do, which their schemas do not say.
    lazy = schema.name in _LAZY or any(each.alias_info is not None for each in schema.returns)
    return lazy or schema.is_mutable


_LAZY = tuple(
    f"aten::{name}"
    for name in (
        *("reshape", "flatten", "contiguous", "to", "dropout", "feature_dropout", "alpha_dropout", "expand_as"),
        *("reshape_as", "view_as", "type_as", "chunk", "unbind", "split", "tensor_split", "narrow", "unflatten"),
        *("movedim", "moveaxis", "ravel", "pad", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_to"),
    )
)
