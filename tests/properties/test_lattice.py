"""What must hold of every answer to a lattice problem, whatever its matrix, targets and box."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from temper.core.solver import LatticeProblem
from temper.solvers.lattice._descent import descend
from temper.solvers.lattice._triangular import beam_search, by_residual
from temper.solvers.lattice.beam import Beam
from temper.solvers.lattice.exact import Exact
from temper.solvers.lattice.gptq import Gptq
from temper.testing.solvers import problem_of

EASY = settings(deadline=None, max_examples=25)
PROBLEMS = st.builds(
    problem_of,
    rows=st.integers(1, 6),
    n=st.integers(1, 40),
    box=st.sampled_from([(-1, 1), (-2, 1), (0, 3), (-8, 7)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32 - 1),
)


@EASY
@given(problem=PROBLEMS, width=st.sampled_from([1, 3, 16]))
def test_beams_are_integers_in_the_box(problem: LatticeProblem, width: int) -> None:
    found = Beam(width=width).solve(problem, 0)
    assert torch.equal(found, found.round().clamp(problem.low, problem.high))


@EASY
@given(problem=PROBLEMS)
def test_descent_never_worsens_and_ends_where_no_single_step_helps(problem: LatticeProblem) -> None:
    start = problem.nearest()
    found = descend(problem, start)
    least, slack = problem.energy(found), 1e-4 * float(problem.gram.diagonal().mean())
    assert bool((least <= problem.energy(start) + slack).all())
    for j in range(problem.target.shape[1]):
        for step in (-1, 1):
            moved = found.clone()
            moved[:, j] = (moved[:, j] + step).clamp(problem.low, problem.high)
            assert bool((problem.energy(moved) >= least - slack).all())


@EASY
@given(problem=PROBLEMS)
def test_without_correlations_gptq_is_nearest_rounding(problem: LatticeProblem) -> None:
    apart = LatticeProblem(
        gram=problem.gram.diagonal().diag(), target=problem.target, low=problem.low, high=problem.high
    )
    assert torch.equal(Gptq().solve(apart, 0), apart.nearest())


@EASY
@given(problem=PROBLEMS, seed=st.integers(0, 2**31), width=st.sampled_from([1, 8]))
def test_the_names_of_coordinates_do_not_matter(problem: LatticeProblem, seed: int, width: int) -> None:
    shuffle = torch.randperm(len(problem.gram), generator=torch.Generator().manual_seed(seed))
    double = LatticeProblem(
        gram=problem.gram.double(), target=problem.target.double(), low=problem.low, high=problem.high
    )
    shuffled = LatticeProblem(
        gram=double.gram[shuffle][:, shuffle], target=double.target[:, shuffle], low=problem.low, high=problem.high
    )
    one = beam_search(double, by_residual(double.gram), width)
    other = beam_search(shuffled, by_residual(shuffled.gram), width)
    assert torch.equal(one[:, shuffle], other)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 7))
def test_on_the_grid_everyone_is_right(seed: int, n: int) -> None:
    problem = problem_of(rows=4, n=n, box=(-2, 1), dtype=torch.float64, seed=seed)
    on_grid = LatticeProblem(gram=problem.gram, target=problem.nearest(), low=-2, high=1)
    for solver in (Gptq(), Beam(), Exact()):
        assert torch.equal(solver.solve(on_grid, 0), on_grid.target)
