"""Fold the constants of an ONNX file: write in the sizes of its inputs, and compute once what no input decides.

Files often compute shapes from their inputs, choose branches by a constant, and carry batch norms next to
convolutions. Runtimes fold some of it when they load a file, but not what an undeclared size hides from them.
"""

from dataclasses import dataclass

from onnx import ModelProto

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError
from temper.core.facts import is_onnx
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.onnx.facts import has_decided_branch
from temper.graph.onnx.folding import folded
from temper.graph.onnx.program import greatest_change, nodes_of, onnx_model, with_model

TOLERANCE = 1e-4
"""Greatest change of an output, relative to the largest output, that counts as rounding."""


@dataclass(frozen=True, kw_only=True)
class OnnxConstantFolding(Technique):
    """Fold everything in an ONNX file that does not depend on its inputs, and prove the outputs unchanged."""

    needs = (is_onnx,)
    leaves = (~has_decided_branch,)
    reference = "Aho, Lam, Sethi and Ullman 2006, Compilers, section 9.4 (constant propagation)"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The folded file. Raises: NoEffect if no operator went away; TrialError if an output changed."""
        before = onnx_model(graph)
        assert before is not None
        after = folded(graph)
        if _operators(after) >= _operators(before):
            raise NoEffect(f"{self.name} found nothing to fold in the {_operators(before)} operators of the file")
        changes = greatest_change(before, after, [each.numpy() for each in graph.example])
        for name, change in changes.items():
            if not change <= TOLERANCE:
                raise TrialError(
                    f"{self.name} changed output {name!r} by {change:.1e} of its scale, more than rounding "
                    f"({TOLERANCE:.0e}): the file computes something else for inputs of declared sizes"
                )
        return with_model(graph, after)


def _operators(model: ModelProto) -> int:
    return sum(node.op_type != "Constant" for node in nodes_of(model.graph))
