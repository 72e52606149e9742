"""Which values of a graph are changed in place, whatever name they go by."""

from torch._ops import OpOverload
from torch.fx import GraphModule, Node

MAYBE_VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        *("reshape", "flatten", "contiguous", "to", "dropout", "feature_dropout", "alpha_dropout", "expand_as"),
        *("reshape_as", "view_as", "type_as", "chunk", "unbind", "split", "tensor_split", "narrow", "unflatten"),
        *("movedim", "moveaxis", "ravel", "pad", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_to"),
    )
)
"""These may return their argument, or a view of it, which their schemas do not say."""


def changed_in_place(module: GraphModule) -> set[Node]:
    """The nodes whose value an operator changes after it was computed, with all that share memory with them."""
    pending = [each for node in module.graph.nodes for each in _written(node)]
    changed: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in changed:
            continue
        changed.add(node)
        pending.extend(user for user in node.users if _source(user) is node)
        if (source := _source(node)) is not None:
            pending.append(source)
    return changed


def _written(node: Node) -> list[Node]:
    """The arguments that the node changes; of a function that says nothing about itself, all may be."""
    if node.op != "call_function":
        return []
    if not isinstance(node.target, OpOverload):
        return list(node.all_input_nodes) if node.is_impure() else []
    places = [place for place, each in enumerate(node.target._schema.arguments) if each.is_write]
    names = {each.name for each in node.target._schema.arguments if each.is_write}
    given = [node.args[place] for place in places if place < len(node.args)]
    given += [value for name, value in node.kwargs.items() if name in names]
    return [each for each in given if isinstance(each, Node)]


def _source(node: Node) -> Node | None:
    """The node whose memory this one's result may be: its first argument, if it is a view or is changed in place."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    if isinstance(node.target, OpOverload):
        schema = node.target._schema
        if schema.name not in MAYBE_VIEWS and all(each.alias_info is None for each in schema.returns):
            return None
    return node.args[0]
