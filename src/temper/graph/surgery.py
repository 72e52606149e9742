"""Changing a graph: reading and writing the tensors that it holds, inserting and removing nodes."""

from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node


def tensor_of(module: GraphModule, node: object) -> Tensor | None:
    """The parameter or buffer behind a `get_attr` node, or None for anything else."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    owner, name = _owner(module, str(node.target))
    value = getattr(owner, name)
    return value if isinstance(value, Tensor) else None


def set_tensor(module: GraphModule, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer in place; it stays what it was, and frozen if it was frozen."""
    owner, leaf = _owner(module, name)
    old = getattr(owner, leaf)
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(value, requires_grad=old.requires_grad and value.is_floating_point()))
    else:
        setattr(owner, leaf, value)


def add_tensor(module: GraphModule, name: str, value: Tensor, *, trainable: bool = False) -> Node:
    """Register a parameter or buffer under a fresh name like `name`, and return a node that reads it.

    The node is placed before all others, where every use can see it.
    """
    name = name.replace(".", "_")
    fresh, count = name, 0
    while hasattr(module, fresh):
        count += 1
        fresh = f"{name}_{count}"
    if trainable:
        module.register_parameter(fresh, nn.Parameter(value))
    else:
        module.register_buffer(fresh, value)
    first = next(iter(module.graph.nodes))
    with module.graph.inserting_before(first):
        return module.graph.get_attr(fresh)


def call(module: GraphModule, target: OpOverload[..., Any], *arguments: Any, **keywords: Any) -> Node:
    """A node that calls the operator, placed where the graph inserts, which carries the form of its value."""
    node = module.graph.call_function(target, arguments, keywords)
    forms = [each.meta["val"] if isinstance(each, Node) else each for each in arguments]
    node.meta["val"] = target(*forms, **keywords)
    return node


def users_of_tensor(module: GraphModule, name: str) -> list[Node]:
    """The nodes that use the parameter or buffer of that name, through whichever `get_attr` node."""
    reads = (node for node in module.graph.nodes if node.op == "get_attr" and node.target == name)
    return [user for read in reads for user in read.users]


def clean(module: GraphModule) -> None:
    """Drop nodes without users and tensors without readers, then recompile."""
    module.graph.eliminate_dead_code(_has_effect)
    # The graphs inside (of torch.cond, of autocast regions) read tensors of their own.
    read = {
        f"{path}.{node.target}".removeprefix(".")
        for path, inner in module.named_modules(remove_duplicate=False)
        if isinstance(inner, GraphModule)
        for node in inner.graph.nodes
        if node.op == "get_attr"
    }
    for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)):
        if name not in read:
            owner, leaf = _owner(module, name)
            delattr(owner, leaf)
    module.graph.lint()
    module.recompile()


def _has_effect(node: Node) -> bool:
    """Whether a node does something besides its result: torch also says so of every batch norm and dropout."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.is_mutable or not node.target._schema.returns
    return bool(node.is_impure())


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    return module.get_submodule(".".join(path)), leaf
