"""The sphere decoder: the optimum, proven, for rows of a few dozen coordinates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from temper.core.errors import TrialError
from temper.core.knobs import knob
from temper.core.solver import LatticeProblem, Solver
from temper.solvers.lattice._triangular import Triangle, by_residual


@dataclass(frozen=True, kw_only=True)
class Exact(Solver):
    """Depth-first search, nearest integers first, that leaves a branch once it costs more than the best answer."""

    reference = "Agrell, Eriksson, Vardy and Zeger 2002, Closest point search in lattices (Schnorr-Euchner)"

    nodes: int = knob(1_000_000, low=1, high=10**12, help="decisions a row may take before it is given up")

    def solve(self, problem: LatticeProblem, seed: int) -> Tensor:
        """The optimum of every row. Raises: TrialError if a row takes more than `nodes` decisions."""
        triangle = Triangle.of(problem.gram.double(), by_residual(problem.gram))
        found = torch.empty_like(problem.target)
        for index, row in enumerate(problem.target.double()):
            integers = _decode(triangle, row[triangle.order].tolist(), problem.low, problem.high, self.nodes)
            if integers is None:
                n = problem.target.shape[1]
                raise TrialError(
                    f"{self.name}: row {index} of {n} coordinates takes more than {self.nodes} decisions; "
                    "raise `nodes` or take lattice.beam"
                )
            found[index, triangle.order] = torch.tensor(integers, dtype=found.dtype)
        return found


def _decode(triangle: Triangle, target: list[float], low: int, high: int, nodes: int) -> list[int] | None:
    """The best integers of one row, or None when the nodes are spent."""
    n = len(target)
    weights, coupling = triangle.weights.tolist(), triangle.coupling.tolist()
    integers, best, least = [0] * n, None, float("inf")
    # What is still to be tried at each open level, the nearest integer last, with the cost it leads to.
    open_levels: list[list[tuple[float, int]]] = []

    def branches(j: int, cost: float) -> list[tuple[float, int]]:
        shift = sum(coupling[j][i] * (integers[i] - target[i]) for i in range(j + 1, n))
        center = target[j] - shift
        return sorted(((cost + weights[j] * (x - center) ** 2, x) for x in range(low, high + 1)), reverse=True)

    open_levels.append(branches(n - 1, 0.0))
    while open_levels:
        j = n - len(open_levels)
        if not open_levels[-1] or open_levels[-1][-1][0] >= least:
            open_levels.pop()
            continue
        cost, integers[j] = open_levels[-1].pop()
        if (nodes := nodes - 1) < 0:
            return None
        if j:
            open_levels.append(branches(j - 1, cost))
        else:
            best, least = list(integers), cost
    return best
