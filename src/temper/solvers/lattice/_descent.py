"""Integer coordinate descent: each row takes its best change of one coordinate until none helps."""

import torch
from torch import Tensor

from temper.core.solver import LatticeProblem

MOVES = 10
"""A row ends after so many moves a coordinate, far more than it ever needs: rounding errors must not make it circle."""


def descend(problem: LatticeProblem, integers: Tensor) -> Tensor:
    """Integers (rows, n) that no change of a single coordinate improves, from integers in the box.

    A step t of coordinate j changes the energy by t (2 g_j + t G_jj) with the gradient g = (x - d) G.
    """
    curvature = problem.gram.diagonal()
    least = -64 * torch.finfo(curvature.dtype).eps * float(curvature.mean())
    found = integers.clone()
    gradient = (found - problem.target) @ problem.gram
    active = torch.arange(len(found))
    for _ in range(MOVES * len(curvature)):
        here, slope = found[active], gradient[active]
        step = torch.minimum(torch.maximum((-slope / curvature).round(), problem.low - here), problem.high - here)
        change, chosen = (step * (2 * slope + step * curvature)).min(1)
        moving = change < least
        if not bool(moving.any()):
            break
        active, chosen = active[moving], chosen[moving]
        step = step[moving].gather(1, chosen[:, None])
        found[active, chosen] += step.squeeze(1)
        gradient[active] += step * problem.gram[chosen]
    return found
