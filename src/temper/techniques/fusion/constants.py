"""Compute once what depends on no input, and store the result.

Position embeddings, relative position biases, masks and standardized weights are computed at every call although they
never change. Runtimes fold most of that when they load a model; but a quantizer that was put on such a value, as if it
were an activation, keeps them from it, and a weight that is computed gets no integers at all.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.equivalence import check_unchanged, outputs
from temper.graph.patterns.constants import foldable_constants, has_foldable_constants
from temper.graph.surgery import add_tensor, clean, tensor_of


@dataclass(frozen=True, kw_only=True)
class ConstantFolding(Technique):
    """Store the results of all subgraphs that no input reaches, unless they are much larger than their sources."""

    needs = (has_foldable_constants,)
    leaves = (~has_foldable_constants,)
    auxiliary = True
    reference = "Wegman and Zadeck 1991, Constant propagation with conditional branches, TOPLAS 13(2)"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with its constants stored. Raises: NoEffect; TrialError if an output changed."""
        roots = foldable_constants(graph)
        if not roots:
            raise NoEffect(f"{self.name} found nothing that is computed from stored tensors alone")
        before = outputs(graph)
        while roots:
            values: dict[Node, Any] = {}
            for root in roots:
                _store(graph, root, values)
            clean(graph.module)
            # A tensor with one reader less may now belong to a result that was too large.
            roots = foldable_constants(graph)
        check_unchanged(self.name, graph, before, "an operator that does not repeat itself")
        return graph


def _store(graph: Graph, root: Node, values: dict[Node, Any]) -> None:
    """Put the result in the place of the node; what was computed from trained parameters can be trained itself."""
    with torch.no_grad():
        result = _value(graph, values, root)
    assert isinstance(result, Tensor)
    sources = (tensor_of(graph.module, each) for each in values if each.op == "get_attr" and each in _before(root))
    trained = any(isinstance(each, nn.Parameter) and each.requires_grad for each in sources)
    stored = add_tensor(
        graph.module, root.name, result.clone().contiguous(), trainable=trained and result.is_floating_point()
    )
    stored.meta["val"] = root.meta["val"]
    root.replace_all_uses_with(stored)


def _value(graph: Graph, values: dict[Node, Any], node: Node) -> Any:
    """What the node computes, with everything before it computed once."""
    if node not in values:
        stored: Any = tensor_of(graph.module, node)
        if stored is None:
            assert callable(node.target)
            arguments, keywords = map_arg((node.args, node.kwargs), partial(_value, graph, values))
            stored = node.target(*arguments, **keywords)
        values[node] = stored
    return values[node]


def _before(node: Node) -> set[Node]:
    """The node and all that it is computed from."""
    found, pending = {node}, [node]
    while pending:
        new = set(pending.pop().all_input_nodes) - found
        found |= new
        pending.extend(new)
    return found
