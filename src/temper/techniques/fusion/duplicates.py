"""Compute once what is computed twice from the same values, and store equal matrices once.

Runtimes merge equal operators when they load a model; none of them notices that two matrices hold the same numbers.
"""

from dataclasses import dataclass

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.equivalence import check_unchanged, outputs
from temper.graph.patterns.duplicates import equal_nodes, equal_tensors, has_duplicates
from temper.graph.surgery import clean


@dataclass(frozen=True, kw_only=True)
class DuplicateRemoval(Technique):
    """Let all readers of equal results and equal matrices read the first of them."""

    needs = (has_duplicates,)
    leaves = (~has_duplicates,)
    reference = "Cocke 1970, Global common subexpression elimination, ACM SIGPLAN Notices 5(7)"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with nothing in it twice. Raises: NoEffect; TrialError if an output changed."""
        if not has_duplicates.holds(graph, context):
            raise NoEffect(f"{self.name} found nothing that is computed or stored twice")
        before = outputs(graph)
        tied = equal_tensors(graph)
        for node in graph.module.graph.find_nodes(op="get_attr"):
            node.target = tied.get(str(node.target), node.target)
        for node, first in equal_nodes(graph).items():
            node.replace_all_uses_with(first)
        clean(graph.module)
        check_unchanged(self.name, graph, before, "an operator that does not repeat itself")
        return graph
