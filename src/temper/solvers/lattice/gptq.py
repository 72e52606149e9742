"""GPTQ: round one weight after another, each making up for the errors before it."""

from dataclasses import dataclass

from torch import Tensor

from temper.core.solver import LatticeProblem, Solver
from temper.solvers.lattice._triangular import beam_search, by_diagonal


@dataclass(frozen=True, kw_only=True)
class Gptq(Solver):
    """Babai's nearest plane in the order of the diagonal, the largest entry first ("activation order")."""

    reference = "Frantar et al. 2023, arXiv 2210.17323; Chen et al. 2025, arXiv 2507.18553"

    def solve(self, problem: LatticeProblem, seed: int) -> Tensor:
        """One pass over the coordinates."""
        return beam_search(problem, by_diagonal(problem.gram), width=1)
