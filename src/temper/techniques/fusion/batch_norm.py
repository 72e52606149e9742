"""Fold batch norms into the convolutions and linear layers before them."""

from dataclasses import dataclass

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.batch_norms import fold_batch_norms
from temper.graph.equivalence import check_unchanged, outputs
from temper.graph.facts import foldable_batch_norms, has_foldable_batch_norm
from temper.graph.patterns.constants import has_foldable_constants


@dataclass(frozen=True, kw_only=True)
class BatchNormFusion(Technique):
    """Fold every batch norm in evaluation mode into the layer before it, and prove the outputs unchanged."""

    needs = (has_foldable_batch_norm, ~has_foldable_constants)
    leaves = (~has_foldable_batch_norm,)
    auxiliary = True
    reference = "Jacob et al. 2018, arXiv 1712.05877, section 3.2"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph without its foldable batch norms. Raises: NoEffect; TrialError if an output changed."""
        if not foldable_batch_norms(graph):
            raise NoEffect("fusion.batch_norm found no batch norm behind a convolution or linear layer")
        before = outputs(graph)
        fold_batch_norms(graph)
        check_unchanged(self.name, graph, before, "a running variance near zero")
        return graph
