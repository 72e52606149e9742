"""How fast this processor multiplies in each float type, found out by trying, once a machine and under a time limit.

What a processor's list of features promises says little: a type without kernels of its own is emulated, and some
products in it take minutes. So a child process multiplies in each type in turn and is killed when one does not end.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from temper.hardware.cache import made_once, user_cache
from temper.hardware.processor import processor

TYPES = ("float32", "bfloat16", "float16")
"""In this order: a type that hangs ends the process, and those before it are known by then."""
LIMIT_S, START_S = 10, 120.0
"""How long one type may take, and the process in all: it imports torch first."""
BLOCK_S, BLOCKS = 0.02, 10
SIZE = 256
IMAGE, CHANNELS, KERNEL = 28, 64, 3

Precisions = Mapping[str, Mapping[str, float]]
"""Floating-point operations a second for each type and operator; a type that did not end in time is not in it."""


def precisions() -> Precisions:
    """What was measured on this machine with this torch, now or before: kept in the user's cache folder."""
    key = json.dumps([*processor(), metadata.version("torch")])
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    found: Precisions = {}

    def write(file: Path) -> None:
        nonlocal found
        found = probed()
        if "float32" not in found:
            raise _Unknown
        file.write_text(json.dumps(found), encoding="utf-8")

    try:
        file = made_once(user_cache() / "precisions" / name, write)
        found = json.loads(file.read_text(encoding="utf-8"))
    except (_Unknown, OSError, ValueError):
        # Not known for now, or not kept: neither is a reason to stop.
        return found
    return found


class _Unknown(Exception):
    pass


def probed(command: tuple[str, ...] = (sys.executable, "-m", "temper.hardware.precision")) -> Precisions:
    """Run the child process, whose lines are `type operator rate`, and take what it wrote before it ended."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_S)
        written = done.stdout
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stdout or b""
        written = output if isinstance(output, str) else output.decode()
    rates: dict[str, dict[str, float]] = {}
    for line in written.splitlines():
        kind, operator, rate = line.split()
        rates.setdefault(kind, {})[operator] = float(rate)
    return rates


def main() -> None:
    """The child process: one thread, a line an operator and type, killed by its own alarm when one takes too long."""
    import torch

    torch.set_num_threads(1)
    for kind in TYPES:
        # No handler: the signal ends the process even inside a product that never returns to Python.
        signal.alarm(LIMIT_S)
        rates = _rates(kind)
        signal.alarm(0)
        for operator, rate in rates.items():
            print(kind, operator, rate, flush=True)


def _rates(kind: str) -> dict[str, float]:
    import torch

    dtype = getattr(torch, kind)
    matrix = torch.ones(SIZE, SIZE).to(dtype)
    image = torch.ones(1, CHANNELS, IMAGE, IMAGE).to(dtype)
    kernels = torch.ones(CHANNELS, CHANNELS, KERNEL, KERNEL).to(dtype)
    with torch.inference_mode():
        return {
            "matmul": _rate(lambda: matrix @ matrix, 2 * SIZE**3),
            "conv2d": _rate(
                lambda: torch.nn.functional.conv2d(image, kernels, padding=KERNEL // 2),
                2 * IMAGE**2 * CHANNELS**2 * KERNEL**2,
            ),
        }


def _rate(call: Callable[[], object], operations: int) -> float:
    """Operations a second of our processor time, in the best of a few blocks: a busy neighbour counts little."""
    call()
    began = time.process_time()
    call()
    calls = max(1, int(BLOCK_S / max(time.process_time() - began, 1e-9)))
    best = float("inf")
    for _ in range(BLOCKS):
        began = time.process_time()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time() - began) / calls)
    return operations / best


if __name__ == "__main__":
    main()
