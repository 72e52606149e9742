"""What must hold for every solver: answers in the box, repeatable, no worse than rounding, its problem unharmed."""

from collections.abc import Iterator

import torch

from temper.core.errors import TrialError
from temper.core.solver import LatticeProblem, Solver
from temper.testing import plugs

SEED = 7
BOXES = ((-1, 1), (-2, 1), (0, 3), (-8, 7))


def check(solver: type[Solver]) -> None:
    """Assert that the solver keeps its contract on made-up problems, with each of its knobs.

    With its defaults it must also do at least as well as nearest rounding, over all rows of a problem.
    """
    plugs.check(solver, Solver)
    for problem in problems():
        where = f"n={problem.target.shape[1]} in {problem.low}..{problem.high}, {problem.target.dtype}"
        found = check_answer(solver(), problem, where)
        assert found is not None, f"{solver.name} gave up with its defaults ({where})"
        energy, rounded = problem.energy(found).sum(), problem.energy(problem.nearest()).sum()
        assert energy <= rounded * (1 + 1e-6), f"{solver.name} is worse than nearest rounding ({where})"
        again = solver().solve(problem, SEED)
        assert torch.equal(again, found), f"{solver.name} gave two answers for one seed ({where}): draw from it alone"
    small = problem_of(rows=2, n=4, box=BOXES[0], dtype=torch.float64)
    for variant in plugs.variants(solver):
        if not _slow(variant):
            check_answer(variant, small, str(variant))


def problems() -> Iterator[LatticeProblem]:
    """Seeded problems: one coordinate, few and many, correlated, in boxes that clip and in both float types."""
    for n, box in zip((1, 5, 8, 6), BOXES):
        yield problem_of(rows=6, n=n, box=box, dtype=torch.float64)
    yield problem_of(rows=6, n=7, box=BOXES[1], dtype=torch.float32)


def problem_of(*, rows: int, n: int, box: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> LatticeProblem:
    """A problem with a correlated matrix, whose targets reach a little beyond the box."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * n, n, generator=generator, dtype=torch.float64)
    inputs += 2 * torch.randn(4 * n, 1, generator=generator, dtype=torch.float64)
    gram = inputs.T @ inputs / len(inputs) + 0.01 * torch.eye(n, dtype=torch.float64)
    low, high = box
    target = low - 0.7 + (high - low + 1.4) * torch.rand(rows, n, generator=generator, dtype=torch.float64)
    return LatticeProblem(gram=gram.to(dtype), target=target.to(dtype), low=low, high=high)


def check_answer(solver: Solver, problem: LatticeProblem, where: str) -> torch.Tensor | None:
    """The solver's answer, asserted to be of the right form, or None if it raises TrialError."""
    gram, target = problem.gram.clone(), problem.target.clone()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED + 1)
        try:
            found = solver.solve(problem, SEED)
        except TrialError as error:
            if not str(error):
                raise AssertionError(f"{solver} raised {type(error).__name__} without a message ({where})") from error
            return None
        except Exception as error:
            raise AssertionError(f"{solver} crashed with {type(error).__name__}: {error} ({where})") from error
    unharmed = torch.equal(gram, problem.gram) and torch.equal(target, problem.target)
    assert unharmed, f"{solver} changed its problem ({where})"
    form = (found.shape, found.dtype, found.requires_grad)
    assert form == (target.shape, target.dtype, False), f"{solver} answers with {form} ({where})"
    assert torch.equal(found, found.round()), f"{solver} answers with numbers that are no integers ({where})"
    inside = bool(((found >= problem.low) & (found <= problem.high)).all())
    assert inside, f"{solver} leaves the box ({where})"
    return found


def _slow(solver: Solver) -> bool:
    """Whether a knob that counts is at an upper bound that would take hours."""
    counts = [getattr(solver, knob.name) for knob in solver.knobs() if knob.type is int]
    return any(count > 10_000 for count in counts)
