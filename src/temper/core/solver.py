"""A solver: the integers of a problem whose real answer is known but may not be used."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from temper.core.knobs import Plug

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LatticeProblem:
    """For each row d of `target`, the integers x in low..high with the least energy (x - d) G (x - d)'.

    `target` is (rows, n). `gram` is G, (n, n), symmetric and positive definite; all rows share it. Both have one
    float dtype, in which solvers work.
    """

    gram: "Tensor"
    target: "Tensor"
    low: int
    high: int

    def energy(self, integers: "Tensor") -> "Tensor":
        """The energy (rows,) of integers (rows, n), in float64."""
        error = (integers - self.target).double()
        return ((error @ self.gram.double()) * error).sum(1)

    def nearest(self) -> "Tensor":
        """Each entry of the target, alone, rounded into the box: (rows, n)."""
        return self.target.round().clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Solver(Plug):
    """A frozen dataclass of knobs that answers all rows of a lattice problem together."""

    folder: ClassVar[str] = "temper.solvers"
    reference: ClassVar[str] = ""

    @abstractmethod
    def solve(self, problem: LatticeProblem, seed: int) -> "Tensor":
        """Integers (rows, n) in the box, in the target's dtype; whatever is random follows from the seed."""
