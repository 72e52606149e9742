"""GPTQ with beam search, then integer coordinate descent."""

from dataclasses import dataclass

from torch import Tensor

from temper.core.knobs import knob
from temper.core.solver import LatticeProblem, Solver
from temper.solvers.lattice._descent import descend
from temper.solvers.lattice._triangular import beam_search, by_residual


@dataclass(frozen=True, kw_only=True)
class Beam(Solver):
    """Keep the `width` best beginnings of each row while coordinates are decided, then descend to a local optimum."""

    reference = "beam search over GPTQ's decisions (Frantar et al. 2023, arXiv 2210.17323), in sorted-QR order"

    width: int = knob(32, low=1, high=4096, help="beginnings kept for each row; time and memory grow with it")

    def solve(self, problem: LatticeProblem, seed: int) -> Tensor:
        """One pass over the coordinates and a descent."""
        return descend(problem, beam_search(problem, by_residual(problem.gram), self.width))
