"""Round each weight to its nearest integer."""

from dataclasses import dataclass

from torch import Tensor

from temper.core.solver import LatticeProblem, Solver


@dataclass(frozen=True, kw_only=True)
class Nearest(Solver):
    """Every coordinate alone: optimal where the matrix is diagonal, and what quantizers do by themselves."""

    reference = "Jacob et al. 2018, arXiv 1712.05877"

    def solve(self, problem: LatticeProblem, seed: int) -> Tensor:
        """The nearest integers in the box."""
        return problem.nearest()
