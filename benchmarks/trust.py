"""How often does a proof of temper err, and how many examples does it take? Simulated with known truth.

python benchmarks/trust.py [--proofs 1000] [--seed 0] [--out benchmarks/trust.md]
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from temper.measure import paired_binary
from temper.measure.statistics import paired_drop, set_metric_drop

FloatArray = npt.NDArray[np.float64]
Pairs = Callable[[np.random.Generator, int], tuple[FloatArray, FloatArray]]


MORE = 20
"""Simulated 0/1 proofs are cheap, because equal counts have equal verdicts."""


class BinaryProofs:
    """Verdicts of `paired_drop` on 0/1 scores with given counts.

    With n, limit and the number of disagreements fixed, ACCEPT is monotone in the losses (a unit test enumerates it):
    a verdict already seen decides all cases on its side.
    """

    def __init__(self, n: int, limit: float) -> None:
        self.n, self.limit = n, limit
        self.accepted: dict[int, int] = {}
        self.refused: dict[int, int] = {}

    def accepts(self, losses: int, gains: int) -> bool:
        total = losses + gains
        if losses <= self.accepted.get(total, -1):
            return True
        if losses >= self.refused.get(total, total + 1):
            return False
        reference, candidate = np.ones(self.n), np.ones(self.n)
        candidate[:losses] = 0.0
        reference[losses:total] = 0.0
        if paired_drop(reference, candidate, max_drop=self.limit).verdict == "ACCEPT":
            self.accepted[total] = losses
            return True
        self.refused[total] = losses
        return False

    def share(self, rng: np.random.Generator, proofs: int, drop: float, rate: float) -> int:
        """How many of `proofs` accept, when the true drop and disagreement rate are these."""
        shares = ((rate + drop) / 2, (rate - drop) / 2, 1 - rate)
        return sum(self.accepts(int(b), int(c)) for b, c, _ in rng.multinomial(self.n, shares, size=proofs))


def percent(count: int, proofs: int) -> str:
    interval = stats.binomtest(count, proofs).proportion_ci(0.95, method="wilson")
    return f"{100 * count / proofs:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(header)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def normal(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    reference = rng.random(n)
    return reference, reference - rng.normal(0.01, 0.1, n)


def exponential(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    reference = rng.random(n)
    return reference, reference - 0.01 - 0.05 * (rng.exponential(1.0, n) - 1.0)


def lognormal(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    reference = rng.random(n)
    return reference, reference - 0.01 - 0.03 * (rng.lognormal(0.0, 1.0, n) - np.exp(0.5))


def rare(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    reference = rng.random(n)
    return reference, reference - rng.uniform(0.0, 2 / 3, n) * (rng.random(n) < 0.03)


def rarer(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    reference = rng.random(n)
    return reference, reference - (rng.random(n) < 0.0125) * 0.8


def rare_under_noise(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    reference, candidate = rare(rng, n)
    return reference, candidate + rng.normal(0.0, 0.01, n)


def f1(truth: npt.NDArray[np.bool_], guess: npt.NDArray[np.bool_]) -> float:
    return float(2 * np.sum(truth & guess) / max(1, int(truth.sum()) + int(guess.sum())))


def classify(
    rng: np.random.Generator, n: int, losses: float, gains: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    truth = rng.random(n) < 0.3
    reference = truth ^ (rng.random(n) < 0.1)
    right = reference == truth
    return truth, reference, reference ^ (rng.random(n) < np.where(right, losses, gains))


def binary_size(rng: np.random.Generator, proofs: int, tests: dict[tuple[int, float], BinaryProofs]) -> str:
    rows, counts = [], []
    for limit in (0.01, 0.02):
        for rate in (0.01, 0.02, 0.05, 0.10):
            if rate >= limit:
                accepted = [tests[n, limit].share(rng, proofs, limit, rate) for n in (360, 900, 1800, 8000)]
                rows.append([limit, f"{rate:.0%}", *(percent(count, proofs) for count in accepted)])
                counts += accepted
    together = f"All {len(counts)} cells together: {percent(sum(counts), proofs * len(counts))}."
    return table(["limit", "disagreement", "n = 360", "n = 900", "n = 1,800", "n = 8,000"], rows) + f"\n\n{together}"


def exact_size(n: int, limit: float, rate: float) -> float:
    """The probability of p < 0.05 with the true drop at the limit, summed over all counts that matter."""
    spread = math.sqrt(n * rate * (1 - rate))
    totals = np.arange(max(0, math.floor(n * rate - 4.5 * spread)), math.ceil(n * rate + 4.5 * spread) + 1)
    most, critical = -1, []
    for total in totals.tolist():

        def accepts(losses: int, total: int = total) -> bool:
            return losses <= total and (losses < 0 or paired_binary.p_value(losses, total - losses, n, limit) < 0.05)

        # The critical count hardly moves from one number of disagreements to the next.
        while accepts(most + 1):
            most += 1
        while not accepts(most):
            most -= 1
        critical.append(most)
    share = min(1.0, (1 + limit / rate) / 2)
    return float(np.sum(stats.binom.pmf(totals, n, rate) * stats.binom.cdf(critical, totals, share)))


def binary_exact_size() -> str:
    rows = []
    for limit in (0.01, 0.02):
        for rate in (0.01, 0.02, 0.05, 0.10):
            if rate >= limit:
                sizes = [f"{100 * exact_size(n, limit, rate):.2f} %" for n in (360, 900, 1800, 8000)]
                rows.append([limit, f"{rate:.0%}", *sizes])
    return table(["limit", "disagreement", "n = 360", "n = 900", "n = 1,800", "n = 8,000"], rows)


def binary_planted(rng: np.random.Generator, proofs: int, tests: dict[tuple[int, float], BinaryProofs]) -> str:
    rows = []
    for limit in (0.01, 0.02):
        for factor in (1.25, 1.5, 2.0):
            counts = [tests[n, limit].share(rng, proofs, factor * limit, 0.05) for n in (360, 900, 1800, 8000)]
            rows.append([limit, f"{factor} x limit", *(percent(count, proofs) for count in counts)])
    return table(["limit", "true drop", "n = 360", "n = 900", "n = 1,800", "n = 8,000"], rows)


def binary_power(rng: np.random.Generator, proofs: int) -> str:
    rows = []
    for n in (200, 360, 600, 900, 1800, 3600, 8000, 20000):
        test = BinaryProofs(n, 0.01)
        counts = [test.share(rng, proofs, 0.0, rate) for rate in (0.005, 0.01, 0.02, 0.04)]
        rows.append([f"{n:,}", *(percent(count, proofs) for count in counts)])
    return table(["n", "0.5 % disagree", "1 %", "2 %", "4 %"], rows)


def promised(rng: np.random.Generator, proofs: int) -> str:
    rows = []
    for rate in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08):
        flips = round(rate * 2000) // 2
        reference, candidate = np.ones(2000), np.ones(2000)
        candidate[:flips], reference[flips : 2 * flips] = 0.0, 0.0
        needed = paired_drop(reference, candidate, max_drop=0.01).n_needed
        assert needed is not None
        rows.append(
            [f"{rate:.1%}", f"{needed:,}", percent(BinaryProofs(needed, 0.01).share(rng, proofs, 0.0, rate), proofs)]
        )
    return table(["disagreement", "n_needed", "ACCEPT with so many examples"], rows)


def continuous_size(rng: np.random.Generator, proofs: int) -> str:
    cases: list[tuple[str, Pairs]] = [
        ("normal", normal),
        ("exponential", exponential),
        ("lognormal (sigma 1)", lognormal),
        ("3 % losses of uniform size, else equal", rare),
        ("1.25 % losses of 0.8, else equal", rarer),
        ("3 % losses of uniform size, noise everywhere", rare_under_noise),
    ]
    rows = []
    for name, draw in cases:
        counts = []
        for n in (100, 300):
            verdicts = [paired_drop(*draw(rng, n), max_drop=0.01, seed=i).verdict for i in range(proofs)]
            counts.append(percent(verdicts.count("ACCEPT"), proofs))
        rows.append([name, *counts])
    return table(["differences", "n = 100", "n = 300"], rows)


def set_metric_size(rng: np.random.Generator, proofs: int) -> str:
    rows = []
    for losses, gains in ((0.01, 0.0), (0.03, 0.1), (0.1, 0.2)):
        truth, reference, candidate = classify(rng, 4_000_000, losses, gains)
        limit = f1(truth, reference) - f1(truth, candidate)
        counts = []
        for n in (100, 300):
            accepted = 0
            for i in range(proofs):
                y, a, b = classify(rng, n, losses, gains)

                def metric(
                    at: npt.NDArray[np.int64],
                    y: npt.NDArray[np.bool_] = y,
                    a: npt.NDArray[np.bool_] = a,
                    b: npt.NDArray[np.bool_] = b,
                ) -> tuple[float, float]:
                    return f1(y[at], a[at]), f1(y[at], b[at])

                accepted += set_metric_drop(metric, n, max_drop=limit, resamples=500, seed=i).verdict == "ACCEPT"
            counts.append(percent(accepted, proofs))
        rows.append([f"{losses:.0%} of right, {gains:.0%} of wrong answers flip", *counts])
    return table(["models", "n = 100", "n = 300"], rows)


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def report(proofs: int, seed: int, command: str) -> str:
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    tests = {(n, limit): BinaryProofs(n, limit) for n in (360, 900, 1800, 8000) for limit in (0.01, 0.02)}
    sections = [
        ("Size: 0/1 scores, the true drop exactly at the limit", binary_size(rng, MORE * proofs, tests), SIZE),
        ("The same cells without chance", binary_exact_size(), EXACT),
        ("Planted drops above the limit, 0/1 scores, 5 % disagreement", binary_planted(rng, proofs, tests), PLANTED),
        ("Power: 0/1 scores, no true loss, limit 0.01", binary_power(rng, proofs), POWER),
        ("Is `n_needed` right? 0/1 scores, no true loss, limit 0.01", promised(rng, proofs), NEEDED),
        ("Size: continuous scores, the true drop exactly at the limit", continuous_size(rng, proofs), CONTINUOUS),
        ("Size: F1, the true drop exactly at the limit", set_metric_size(rng, max(1, proofs // 5)), SET_METRIC),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}\n\n{rows}" for title, rows, text in sections)
    minutes = (time.perf_counter() - start) / 60
    facts = (
        f"{datetime.date.today().isoformat()} on {cpu_model()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, numpy {np.__version__}: `{command}` "
        f"({proofs:,} proofs a cell, seed {seed}, {minutes:.1f} minutes)."
    )
    return f"# Can a proof be trusted?\n\n{INTRODUCTION}\n\n{facts}\n\n{body}\n"


INTRODUCTION = """A proof says ACCEPT when the one-sided 95 % bound of the drop lies under the limit. Here the truth
is known, because the scores are simulated: the tables show the share of proofs that say ACCEPT, each with its 95 %
Wilson interval."""
SIZE = """Every ACCEPT is an error here; at most 5 % are allowed. Here are twenty times as many proofs a cell as
elsewhere. (Where disagreement and limit are equal, every disagreement is a loss.)"""
EXACT = """The size of each cell, summed over every outcome instead of simulated. What lies over 5 % in the table above
does so by the luck of the draw; none of these does."""
PLANTED = """Every ACCEPT is an error here too, and the further the drop lies above the limit, the rarer it must
be."""
POWER = """Every ACCEPT is right here. Perfect agreement proves one point from 301 examples on; with fewer, only
gains do."""
NEEDED = """`n_needed` comes from one sample of 2,000 that shows exactly the true rates; with so many examples about
80 % should be accepted (without any disagreement: all)."""
CONTINUOUS = """At most 5 % are allowed, limit 0.01. The last row is the case that no test of this kind can see: among
100 examples the losses are often absent, and noise hides that they are rare."""
SET_METRIC = """Base rate 30 %, reference 90 % accurate, 500 resamples, a fifth of the proofs. Where the models
hardly ever differ, the verdict is INCONCLUSIVE."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proofs", type=int, default=1000, help="simulated proofs a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/trust.md"))
    options = parser.parse_args()
    text = report(options.proofs, options.seed, shlex.join(["python", "benchmarks/trust.py", *sys.argv[1:]]))
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
