"""How long a search may take: seconds on the clock, or a number of trials, which is reproducible."""

import re
import time
from dataclasses import dataclass

from temper.core.errors import UsageError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
SEARCH_SHARE = 0.85
"""The share of the time that the search may take; the rest is for the proof."""
LONGEST_TRIAL_SHARE = 0.5
LEAST_TRIAL_S = 60.0
UNLIMITED_TRIAL_S, UNLIMITED_TRAINING_S = 1800.0, 7 * 86_400.0
"""The longest that a trial may take where trials are counted: no result may depend on when training had to end."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Either `seconds` in all, or a number of `trials`; `spent_s` went by in the runs that this one resumes."""

    seconds: float | None
    trials: int | None
    began: float
    spent_s: float = 0.0

    def left_s(self) -> float:
        """Seconds that the search may still take; infinite when trials are counted."""
        if self.seconds is None:
            return float("inf")
        return self.seconds * SEARCH_SHARE - self.spent_s - (time.monotonic() - self.began)

    def allows(self, ended: int) -> bool:
        """Whether another trial may begin after so many have ended."""
        return self.left_s() > 0 and (self.trials is None or ended < self.trials)

    def trial_s(self, *, trains: bool = False) -> float:
        """The longest that the next trial may take: a hang must not eat the whole budget."""
        if self.seconds is None:
            return UNLIMITED_TRAINING_S if trains else UNLIMITED_TRIAL_S
        return min(self.left_s(), max(LEAST_TRIAL_S, LONGEST_TRIAL_SHARE * self.seconds))


def budgeted(budget: str | float, trials: int | None, spent_s: float) -> Budget:
    """Read a budget such as "10m", "90s", "1h" or seconds; a number of trials replaces it.

    Raises: UsageError if it is none of these.
    """
    if trials is not None and trials < 1:
        raise UsageError(f"trials={trials} must be at least 1")
    seconds = None if trials is not None else _seconds(budget)
    return Budget(seconds=seconds, trials=trials, began=time.monotonic(), spent_s=spent_s)


def _seconds(budget: str | float) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(budget).strip())
    seconds = float(match[1]) * UNITS.get(match[2], 1.0) if match else 0.0
    if seconds <= 0:
        raise UsageError(f"budget={budget!r} is not a length of time: give one such as 90s, 10m or 1h")
    return seconds
