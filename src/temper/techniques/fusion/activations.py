"""Replace activations that are written out by hand with the one operator that computes them.

GELU, SiLU, Mish, hard swish, hard sigmoid, softplus, sigmoid and ReLU are found by what they compute, in whatever way
they are written. Runtimes find most of them in a float graph; but once quantizers stand inside, they do not.
"""

from dataclasses import dataclass

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.equivalence import check_unchanged, outputs
from temper.graph.patterns.activations import Handwritten, handwritten_activations, has_handwritten_activations
from temper.graph.surgery import clean


@dataclass(frozen=True, kw_only=True)
class ActivationFusion(Technique):
    """Put one operator where a known activation is computed by several."""

    needs = (has_handwritten_activations,)
    leaves = (~has_handwritten_activations,)
    auxiliary = True
    reference = "Hendrycks and Gimpel 2016, arXiv 1606.08415; Howard et al. 2019, arXiv 1905.02244, section 5.2"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with its activations as single operators. Raises: NoEffect; TrialError if an output changed."""
        found = handwritten_activations(graph)
        if not found:
            raise NoEffect(f"{self.name} found no activation that is written out by hand")
        before = outputs(graph)
        while found:
            for written in found:
                _fuse(graph, written)
            clean(graph.module)
            found = handwritten_activations(graph)
        check_unchanged(self.name, graph, before, "an activation whose inputs lie far outside of -30 to 30")
        return graph


def _fuse(graph: Graph, written: Handwritten) -> None:
    nodes, result = graph.module.graph, written.region[-1]
    with nodes.inserting_before(result):
        fused = nodes.call_function(written.activation.target, (written.source,), dict(written.activation.keywords))
    fused.meta["val"] = result.meta["val"]
    result.replace_all_uses_with(fused)
    for node in reversed(written.region):
        nodes.erase_node(node)
