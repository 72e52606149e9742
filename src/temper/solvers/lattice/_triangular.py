"""Deciding one coordinate after another: the triangular form of a lattice problem, and beam search over it.

With G = R'R and R upper triangular, the energy is a sum over the coordinates, and the term of each depends on those
behind it alone: R_jj^2 (x_j - c_j)^2, where c_j is d_j shifted by the errors made so far. Coordinates are decided from
the last to the first. Rounding each c_j is Babai's nearest plane, which is GPTQ (Chen et al. 2025, arXiv 2507.18553);
a beam keeps the `width` best beginnings instead of one.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from temper.core.solver import LatticeProblem

BLOCK = 32
"""Coordinates decided before the centers of all later ones are brought up to date, in one matrix product."""
CELLS = 2**21
"""Rows are searched in groups that hold about so many numbers, to stay near the processor's caches."""


@dataclass(frozen=True, kw_only=True)
class Triangle:
    """G in an order of the coordinates: R_jj^2 as `weights` (n,), and R with its rows divided by R_jj as `coupling`."""

    order: Tensor
    weights: Tensor
    coupling: Tensor

    @classmethod
    def of(cls, gram: Tensor, order: Tensor) -> Self:
        root = torch.linalg.cholesky(gram[order][:, order].double(), upper=True)
        diagonal = root.diagonal()
        return cls(
            order=order, weights=(diagonal**2).to(gram.dtype), coupling=(root / diagonal[:, None]).to(gram.dtype)
        )


def by_diagonal(gram: Tensor) -> Tensor:
    """The order (n,) that decides large diagonal entries first, by those of G itself: GPTQ's activation order."""
    return gram.diagonal().argsort(stable=True)


def by_residual(gram: Tensor) -> Tensor:
    """The order (n,) that keeps for the end what is least once all that are decided later are known.

    A Cholesky factorization that always pivots on the least residual, so that the first decisions are the certain
    ones. Reference: Wübben et al. 2001, "Efficient algorithm for decoding layered space-time codes" (sorted QR).
    """
    exact = gram.double()
    residual = exact.diagonal().clone()
    order = torch.empty(len(gram), dtype=torch.int64)
    root = torch.empty_like(exact)
    for place in range(len(gram)):
        pivot = int(residual.argmin())
        column = (exact[pivot] - root[:place, pivot] @ root[:place]) / residual[pivot].sqrt()
        order[place], root[place] = pivot, column
        residual -= column**2
        residual[order[: place + 1]] = torch.inf
    return order


def beam_search(problem: LatticeProblem, order: Tensor, width: int) -> Tensor:
    """The best integers (rows, n) found when `width` beginnings of each row are kept; a width of one is GPTQ."""
    triangle = Triangle.of(problem.gram, order)
    group = max(1, CELLS // (width * len(order)))
    parts = [
        _search(triangle, rows[:, order], (problem.low, problem.high), width)
        for rows in torch.split(problem.target, group)
    ]
    found = torch.empty_like(problem.target)
    found[:, order] = torch.cat(parts)
    return found


def _search(triangle: Triangle, target: Tensor, box: tuple[int, int], width: int) -> Tensor:
    rows, n = target.shape
    centers = target.unsqueeze(1)
    integers = target.new_empty(rows, 1, n)
    cost = target.new_zeros(rows, 1)
    for stop in range(n, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        cost, origin, decided = _search_block(triangle, centers, target, cost, (start, stop), box, width)
        integers = _taken(integers, origin)
        integers[..., start:stop] = decided
        errors = decided - target[:, None, start:stop]
        centers = _taken(centers[..., :start], origin) - errors @ triangle.coupling[:start, start:stop].T
    return _taken(integers, cost.argmin(1, keepdim=True)).squeeze(1)


def _search_block(
    triangle: Triangle,
    centers: Tensor,
    target: Tensor,
    cost: Tensor,
    block: tuple[int, int],
    box: tuple[int, int],
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decide the coordinates of a block: the beam's costs, which former beam each grew from, and its integers."""
    (start, stop), (low, high) = block, box
    rows, beams = cost.shape
    origin = torch.arange(beams).expand(rows, beams)
    decided = centers.new_zeros(rows, beams, stop - start)
    errors = torch.zeros_like(decided)
    for j in range(stop - 1, start - 1, -1):
        place = j - start
        center = centers[..., j].gather(1, origin) - errors[..., place + 1 :] @ triangle.coupling[j, j + 1 : stop]
        options = first = center.round().clamp(low, high)
        if width > 1:
            side = torch.where(center > first, 1, -1).to(first.dtype)
            # At the edge of the box the second nearest integer lies on the other side.
            second = torch.where((first + side > high) | (first + side < low), first - side, first + side)
            options = torch.cat([first, second], 1)
            center = center.repeat(1, 2)
            cost = cost.repeat(1, 2)
        grown = cost + triangle.weights[j] * (options - center) ** 2
        if width > 1:
            grown = grown.masked_fill((options < low) | (options > high), torch.inf)
        cost, chosen = grown.topk(min(width, grown.shape[1]), 1, largest=False, sorted=False)
        parent = chosen % origin.shape[1]
        origin, decided, errors = origin.gather(1, parent), _taken(decided, parent), _taken(errors, parent)
        decided[..., place] = options.gather(1, chosen)
        errors[..., place] = decided[..., place] - target[:, None, j]
    return cost, origin, decided


def _taken(beams: Tensor, which: Tensor) -> Tensor:
    """The chosen beams (rows, chosen, ...) of (rows, beams, ...)."""
    return beams.gather(1, which.unsqueeze(2).expand(-1, -1, beams.shape[2]))
