"""What temper adds: to a call of the bare runtime, to Python's start, and to the command line.

    python benchmarks/overhead.py [--out benchmarks/overhead.md]

The call is measured on the smallest realistic case, a ResNet-20 run of well under a millisecond, with the loaded
artifact and the bare session taking turns in one process.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tasks"))

import numpy as np

from table import header, markdown
from temper import load
from temper.core.artifact import Artifact, example_inputs
from temper.measure.statistics import latency_ratio

ROUNDS, CALLS, STARTS = 200, 60, 15


def call_ratio(folder: Path) -> tuple[str, str]:
    """The loaded artifact's call against its own bare runtime's, in alternating blocks."""
    artifact = Artifact.open(folder)
    inputs = example_inputs(artifact.schema, 1)
    model, bare = load(folder), artifact.runtime.load(artifact.folder, artifact.schema, 1).run
    blocks: dict[str, list[float]] = {"bare": [], "temper": []}
    for turn in range(ROUNDS):
        order = (("bare", bare), ("temper", model))
        for name, call in order if turn % 2 else reversed(order):
            seconds = []
            for _ in range(CALLS):
                before = time.perf_counter()
                call(*inputs)
                seconds.append(time.perf_counter() - before)
            blocks[name].append(float(np.median(seconds[CALLS // 6 :])))
    ratio = latency_ratio(blocks["bare"], blocks["temper"])
    title = f"call of a loaded artifact, {artifact.runtime}, {np.median(blocks['bare']) * 1e3:.3f} ms"
    return title, f"{ratio.ratio:.4f} ({ratio.lower:.4f} to {ratio.upper:.4f}) of the bare runtime's"


def start_seconds(words: list[str]) -> float:
    before = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("artifacts", nargs="+", type=Path, help="folders of artifacts to call")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    rows = [call_ratio(folder) for folder in options.artifacts]
    bare, imported, helped = [], [], []
    for _ in range(STARTS):
        bare.append(start_seconds(["-c", "pass"]))
        imported.append(start_seconds(["-c", "import temper, sys; assert 'torch' not in sys.modules"]))
        helped.append(start_seconds(["-m", "temper", "--help"]))
    added = np.median(np.subtract(imported, bare))
    rows.append(("`import temper` beyond a bare interpreter, without torch", f"{added:.3f} s"))
    rows.append(("`temper --help`, whole process", f"{np.median(helped):.3f} s"))
    text = [
        header(__doc__.strip().split("\n")[0], "python benchmarks/overhead.py FOLDER..."),
        markdown(("what", "cost"), rows),
    ]
    options.out.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
