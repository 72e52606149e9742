"""What stands before and behind a layer: the chains of operators through which a scale of channels can be moved."""

from collections.abc import Iterator

import torch
from torch.fx import Node

from temper.core.graph import Graph
from temper.graph.facts import is_call
from temper.graph.surgery import tensor_of, users_of_tensor

aten = torch.ops.aten

DROPOUTS = (aten.dropout.default, aten.dropout_.default)
HOMOGENEOUS = (
    aten.relu.default,
    aten.relu_.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
)
"""Operators with f(s x) = s f(x) for s > 0, channel by channel."""


def is_idle(node: object) -> bool:
    """Whether the node is a dropout in evaluation mode, which hands on what it reads."""
    return is_call(node, DROPOUTS) and isinstance(node, Node) and not (len(node.args) > 2 and node.args[2])


def sole_reader(node: Node) -> Node | None:
    """The one node that reads this one, and only once; None if there are others."""
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    return reader if reader.all_input_nodes.count(node) == 1 else None


def producer(node: Node, through: tuple[object, ...] = ()) -> tuple[Node, ...]:
    """The node and those before it, latest first, back to the first that is neither idle nor one of `through`.

    It ends early, with what it has, where another reader would see a changed value.
    """
    chain = [node]
    while is_idle(chain[-1]) or is_call(chain[-1], through):
        source = chain[-1].args[0]
        if not isinstance(source, Node) or sole_reader(source) is None:
            break
        chain.append(source)
    return tuple(chain)


def readers_behind(node: Node, through: tuple[object, ...]) -> Iterator[Node]:
    """The one reader of the node, and the readers behind it as long as they are idle or one of `through`."""
    reader = sole_reader(node)
    while reader is not None:
        yield reader
        if not is_idle(reader) and not is_call(reader, through):
            return
        reader = sole_reader(reader)


def owns(graph: Graph, argument: object) -> bool:
    """Whether the argument is a stored tensor that nothing else reads."""
    if not isinstance(argument, Node) or tensor_of(graph.module, argument) is None:
        return False
    return len(users_of_tensor(graph.module, str(argument.target))) == 1
