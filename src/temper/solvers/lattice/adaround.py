"""AdaRound: learn by gradient descent whether each weight is rounded up or down."""

from dataclasses import dataclass

import torch
from torch import Tensor

from temper.core.knobs import knob
from temper.core.solver import LatticeProblem, Solver

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
SHARP_FIRST, SHARP_LAST = 20.0, 2.0
WARM_UP = 0.2
"""Share of the steps before the choices are pushed towards zero and one."""


@dataclass(frozen=True, kw_only=True)
class AdaRound(Solver):
    """A rectified sigmoid between floor and ceiling, Adam on the energy, and a growing pressure to decide.

    The energy is the layer's squared output error over all calibration inputs at once, so steps need no batches. Each
    row's energy is divided by that of its nearest integers, per coordinate, which makes `pressure` free of scale.
    """

    reference = "Nagel et al. 2020, arXiv 2004.10568, equations 21 to 25"

    steps: int = knob(1000, low=1, high=1_000_000, help="steps of Adam")
    rate: float = knob(0.1, low=1e-6, high=1.0, help="step size of Adam")
    pressure: float = knob(10.0, low=0.0, high=1e6, help="weight of the term that decides, against the energy")

    def solve(self, problem: LatticeProblem, seed: int) -> Tensor:
        """The relaxation's answer, cut at one half."""
        floor = problem.target.floor().clamp(problem.low, problem.high - 1)
        share = (problem.target - floor).clamp(0.01, 0.99)
        inner = (share - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
        unit = (problem.energy(problem.nearest()) / share.shape[1]).clamp_min(1e-30).to(share.dtype)
        with torch.enable_grad():
            logits = inner.logit().requires_grad_()
            optimizer = torch.optim.Adam([logits], self.rate)
            for step in range(self.steps):
                choice = _rectified(logits)
                error = floor + choice - problem.target
                loss = (((error @ problem.gram) * error).sum(1) / unit).sum()
                past = step / self.steps
                if past >= WARM_UP:
                    cosine = torch.cos(torch.tensor(torch.pi * (past - WARM_UP) / (1 - WARM_UP)))
                    sharpness = SHARP_LAST + (SHARP_FIRST - SHARP_LAST) * (1 + float(cosine)) / 2
                    loss = loss + self.pressure * (1 - (2 * choice - 1).abs() ** sharpness).sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return floor + (_rectified(logits.detach()) >= 0.5).to(floor.dtype)


def _rectified(logits: Tensor) -> Tensor:
    """Equation 23: a sigmoid stretched beyond zero and one, and cut there."""
    return (torch.sigmoid(logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)
