"""Simulated annealing from GPTQ's answer, then integer coordinate descent."""

from dataclasses import dataclass

import torch
from torch import Tensor

from temper.core.knobs import knob
from temper.core.solver import LatticeProblem, Solver
from temper.solvers.lattice._descent import descend
from temper.solvers.lattice._triangular import beam_search, by_diagonal


@dataclass(frozen=True, kw_only=True)
class Annealing(Solver):
    """Metropolis sweeps over the coordinates, all rows at once, each row keeping the best state between sweeps.

    Temperatures fall geometrically and are in units of the mean of the matrix's diagonal.
    """

    reference = "Kirkpatrick, Gelatt and Vecchi 1983, Science 220"

    sweeps: int = knob(50, low=1, high=100_000, help="visits of every coordinate")
    hot: float = knob(0.1, low=1e-6, high=100.0, unit="mean diagonal", help="first temperature")
    cold: float = knob(0.01, low=1e-6, high=100.0, unit="mean diagonal", help="last temperature")

    def solve(self, problem: LatticeProblem, seed: int) -> Tensor:
        """The best state of each row after a descent; never worse than GPTQ with descent."""
        generator = torch.Generator().manual_seed(seed)
        state = descend(problem, beam_search(problem, by_diagonal(problem.gram), width=1))
        curvature = problem.gram.diagonal()
        gradient = (state - problem.target) @ problem.gram
        best, least = state.clone(), problem.energy(state)
        for sweep in range(self.sweeps):
            share = sweep / max(self.sweeps - 1, 1)
            temperature = float(curvature.mean()) * self.hot * (self.cold / self.hot) ** share
            _sweep(problem, state, gradient, temperature, generator)
            energy = ((state - problem.target) * gradient).sum(1).double()
            better = energy < least
            best[better], least = state[better], torch.minimum(energy, least)
        return descend(problem, best)


def _sweep(
    problem: LatticeProblem, state: Tensor, gradient: Tensor, temperature: float, generator: torch.Generator
) -> None:
    """Offer each coordinate, in a random order, one step up or down; state and gradient change in place."""
    rows, n = state.shape
    steps = torch.randint(0, 2, (n, rows), generator=generator).to(state.dtype) * 2 - 1
    thresholds = -torch.rand(n, rows, generator=generator, dtype=state.dtype).log() * temperature
    for turn, j in enumerate(torch.randperm(n, generator=generator).tolist()):
        moved = state[:, j] + steps[turn]
        change = 2 * steps[turn] * gradient[:, j] + problem.gram[j, j]
        accepted = (change < thresholds[turn]) & (moved >= problem.low) & (moved <= problem.high)
        step = torch.where(accepted, steps[turn], 0)
        state[:, j] += step
        gradient.addr_(step, problem.gram[j])
