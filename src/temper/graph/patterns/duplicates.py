"""What a graph computes or stores twice."""

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from temper.core.facts import Fact
from temper.core.graph import Graph
from temper.graph.aliases import changed_in_place
from temper.graph.patterns.constants import repeatable
from temper.graph.surgery import tensor_of


def equal_tensors(graph: Graph) -> dict[str, str]:
    """The names of stored matrices (two dimensions or more) that equal an earlier one bit for bit, with its name.

    Vectors stay apart: they take no room to speak of, and layers that share one can no longer be folded into.
    """
    seen: dict[tuple[object, ...], list[tuple[str, Tensor]]] = {}
    equal: dict[str, str] = {}
    for node in graph.module.graph.find_nodes(op="get_attr"):
        name, tensor = str(node.target), tensor_of(graph.module, node)
        if tensor is None or tensor.dim() < 2 or name in equal:
            continue
        key = (tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad, tensor.double().sum().item())
        known = seen.setdefault(key, [])
        first = next((other for other, held in known if other != name and tensor.equal(held)), None)
        if first is not None:
            equal[name] = first
        elif all(name != other for other, _ in known):
            known.append((name, tensor))
    return equal


def equal_nodes(graph: Graph) -> dict[Node, Node]:
    """The nodes that compute what an earlier node computes, with that node: same operator, same arguments.

    Arguments count as the same if they are the same node, read the same stored tensor, or are themselves equal.
    """
    changed = changed_in_place(graph.module)
    first: dict[object, Node] = {}
    equal: dict[Node, Node] = {}
    for node in graph.module.graph.nodes:
        if node.op == "get_attr" and tensor_of(graph.module, node) is not None:
            key: object = ("get_attr", node.target)
        elif repeatable(node) and node not in changed and not changed & set(node.all_input_nodes):
            arguments = map_arg((node.args, dict(node.kwargs)), lambda each: equal.get(each, each))
            # `repr` tells 1 from 1.0 and True, which compare as equal.
            key = (node.target, repr(arguments))
        else:
            continue
        if key in first:
            equal[node] = first[key]
        first.setdefault(key, node)
    return equal


def _computed_twice(graph: Graph) -> bool:
    return any(node.op == "call_function" for node in equal_nodes(graph)) or bool(equal_tensors(graph))


has_duplicates = Fact("computes or stores something twice", lambda graph, context: _computed_twice(graph))
