"""The solvers against the optimum, against GPTQ as its paper writes it, and against each other."""

import itertools

import pytest
import torch
from torch import Tensor

from temper.core import catalog
from temper.core.errors import TrialError
from temper.core.solver import LatticeProblem, Solver
from temper.solvers.lattice._descent import descend
from temper.solvers.lattice._triangular import Triangle, beam_search, by_diagonal, by_residual
from temper.solvers.lattice.adaround import AdaRound
from temper.solvers.lattice.annealing import Annealing
from temper.solvers.lattice.beam import Beam
from temper.solvers.lattice.exact import Exact
from temper.solvers.lattice.gptq import Gptq
from temper.testing.solvers import problem_of


def problem(n: int, rows: int = 20, box: tuple[int, int] = (-2, 1), seed: int = 0) -> LatticeProblem:
    return problem_of(rows=rows, n=n, box=box, dtype=torch.float64, seed=seed)


def brute_force(asked: LatticeProblem) -> Tensor:
    """The least energy (rows,) over every point of the box."""
    values = range(asked.low, asked.high + 1)
    points = torch.tensor(list(itertools.product(values, repeat=len(asked.gram))), dtype=torch.float64)
    errors = points[None] - asked.target[:, None]
    return ((errors @ asked.gram) * errors).sum(2).amin(1)


def gptq_of_the_paper(gram: Tensor, weights: Tensor, low: int, high: int) -> Tensor:
    """Frantar et al. 2023, algorithm 1, for scale one and without blocks: columns from the first to the last."""
    factor = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    weights = weights.clone()
    found = torch.empty_like(weights)
    for column in range(len(gram)):
        found[:, column] = weights[:, column].round().clamp(low, high)
        error = (weights[:, column] - found[:, column]) / factor[column, column]
        weights[:, column:] -= error[:, None] * factor[column, column:]
    return found


@pytest.mark.parametrize("box", [(-1, 1), (-2, 1), (0, 3)])
def test_exact_is_the_optimum(box: tuple[int, int]) -> None:
    asked = problem(5, box=box)
    torch.testing.assert_close(asked.energy(Exact().solve(asked, 0)), brute_force(asked))


def test_exact_says_when_it_gives_up() -> None:
    with pytest.raises(TrialError, match="more than 3 decisions"):
        Exact(nodes=3).solve(problem(8), 0)


@pytest.mark.parametrize("name", catalog.names(Solver))
def test_nothing_is_below_exact(name: str) -> None:
    asked = problem(9)
    least = asked.energy(Exact().solve(asked, 0))
    assert bool((asked.energy(catalog.get(Solver, name)().solve(asked, 0)) >= least * (1 - 1e-9)).all())


def test_beam_is_often_optimal_where_gptq_is_not() -> None:
    asked = problem(10, rows=40)
    least = asked.energy(Exact().solve(asked, 0))
    optimal = {
        name: int((asked.energy(solver.solve(asked, 0)) <= least * (1 + 1e-9)).sum())
        for name, solver in (("gptq", Gptq()), ("beam", Beam()))
    }
    assert optimal["beam"] >= 36 > 20 >= optimal["gptq"]


@pytest.mark.parametrize("n", [7, 70])
def test_a_beam_of_one_is_gptq(n: int) -> None:
    """Ours decides from the last coordinate to the first, the paper from the first to the last."""
    asked = problem(n)
    backwards = torch.arange(n).flip(0)
    expected = gptq_of_the_paper(asked.gram, asked.target, asked.low, asked.high)
    assert torch.equal(beam_search(asked, backwards, width=1), expected)


def test_gptq_decides_the_largest_diagonal_entries_first() -> None:
    asked = problem(70)
    order = by_diagonal(asked.gram).flip(0)
    expected = gptq_of_the_paper(asked.gram[order][:, order], asked.target[:, order], asked.low, asked.high)
    assert torch.equal(Gptq().solve(asked, 0)[:, order], expected)


def test_wider_beams_are_better_over_many_rows() -> None:
    asked = problem(70, rows=100)
    energies = [float(asked.energy(beam_search(asked, by_residual(asked.gram), width)).sum()) for width in (1, 4, 16)]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.9 * energies[0]


def test_rows_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(40, rows=12)
    whole = Beam(width=8).solve(asked, 0)
    monkeypatch.setattr("temper.solvers.lattice._triangular.CELLS", 5 * 8 * 40)
    assert torch.equal(Beam(width=8).solve(asked, 0), whole)


def test_terms_of_the_triangle_sum_to_the_energy() -> None:
    asked = problem(40)
    triangle = Triangle.of(asked.gram, by_residual(asked.gram))
    errors = (asked.nearest() - asked.target)[:, triangle.order]
    torch.testing.assert_close(
        ((errors @ triangle.coupling.T) ** 2 * triangle.weights).sum(1), asked.energy(asked.nearest())
    )


def test_order_leaves_the_least_residual_for_the_end() -> None:
    gram = problem(12).gram
    order = by_residual(gram).tolist()
    for place, chosen in enumerate(order):
        known, open_ = order[:place], order[place:]
        solved = torch.linalg.solve(gram[known][:, known], gram[known]) if known else torch.zeros(0, 12)
        residual = gram.diagonal() - (gram[:, known] * solved.double().T).sum(1)
        assert chosen == min(open_, key=lambda j: float(residual[j]))


def test_adaround_lies_between_nearest_and_the_optimum() -> None:
    asked = problem(40, box=(-8, 7))
    nearest, learned = asked.energy(asked.nearest()), asked.energy(AdaRound(steps=300).solve(asked, 0))
    assert float(learned.sum()) < 0.7 * float(nearest.sum())


def test_annealing_is_never_worse_than_its_start() -> None:
    asked = problem(40)
    start = descend(asked, Gptq().solve(asked, 0))
    found = [asked.energy(Annealing(sweeps=sweeps, hot=0.05).solve(asked, 0)) for sweeps in (1, 60)]
    assert bool((found[0] <= asked.energy(start) * (1 + 1e-9)).all())
    assert float(found[1].sum()) < float(asked.energy(start).sum())
