"""What quantization-aware training recovers of MiniLM in 8 bits: accuracy of the artifacts over seeds, last epoch.

    python benchmarks/qat_minilm.py [--seeds 0 1 2] [--epochs 2]

MiniLM with its SST-2 head, sentences at their natural length: float, quantized after training in two ways, and trained
with its quantizers on 6,408 sentences; judged on the 1,821 of the proof part by what the runtimes answer. Each
finished line of `results/qat_minilm.jsonl` is kept, and the page is made from the lines.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from table import header, markdown
from temper import Goal
from temper.core import catalog, lengths
from temper.core.context import Context
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.schema import Array
from temper.core.technique import Technique, applied
from temper.hardware.detect import this_host
from temper.pipeline.prepare import Prepared, prepare
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.task_loading import load_task

HERE = Path(__file__).parent
LINES, REFERENCE = HERE / "results" / "qat_minilm.jsonl", str(HERE / "tasks" / "minilm_sst2.py:trainable")
RUNTIMES: Mapping[str, Mapping[str, str]] = {"onnxruntime": {}, "openvino": {"precision": "f32"}}
TRAINED = "trained with quantizers"
AFTER: Mapping[str, Sequence[str]] = {
    "float": (),
    "static": ("quantization.post_training",),
    "static, smoothed": ("quantization.smoothing", "quantization.post_training", "quantization.bias_correction"),
}
BATCH = 32


def judged(prepared: Prepared, name: str, seed: int, epochs: int, runtime: Runtime) -> dict[str, Any]:
    """One artifact: the share of the proof sentences that it answers rightly."""
    training = prepared.training
    assert training is not None
    context = Context(
        runtime=runtime,
        target=this_host(),
        seed=seed,
        calibration=prepared.calibration,
        training=training.training(
            seed=seed, deadline=math.inf, folder=None, tell=lambda line: print(line, flush=True)
        ),
    )
    began = time.monotonic()
    graph = applied(catalog.get(Technique, "fusion.constants")(), prepared.graph, context)
    for technique in AFTER.get(name, ()):
        graph = applied(catalog.get(Technique, technique)(), graph, context)
    if name == TRAINED:
        chosen = catalog.get(Technique, "quantization.aware_training")
        graph = applied(chosen(epochs=epochs, batch=BATCH), graph, context)
    seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory() as scratch:
        runtime.export(graph, Path(scratch))
        runner = runtime.load(Path(scratch), graph.schema, 1)
        shipped = answers(prepared, lambda inputs: runner.run(*inputs)[0])
        size = sum(file.stat().st_size for file in Path(scratch).iterdir())
    graphs = answers(prepared, lambda inputs: _graph(graph, inputs))
    targets = prepared.parts.proof.targets
    return {
        "name": name,
        "seed": seed,
        "epochs": epochs if name == TRAINED else 0,
        "runtime": str(runtime),
        "seconds": seconds,
        "accuracy": float((shipped == targets).mean()),
        "disagreements": int((shipped != graphs).sum()),
        "bytes": size,
    }


def answers(prepared: Prepared, call: Callable[[tuple[Array, ...]], Array]) -> NDArray[np.int64]:
    """The classes of the proof sentences, in their order."""
    proof = prepared.parts.proof
    found = np.empty(len(proof), np.int64)
    for rows, inputs in lengths.batches(prepared.graph.schema, proof.stored, BATCH):
        found[rows] = call(inputs).argmax(1)
    return found


def _graph(graph: Graph, inputs: tuple[Array, ...]) -> Array:
    with torch.no_grad():
        return graph(*map(torch.from_numpy, inputs))[0].numpy()


def written(lines: Sequence[Mapping[str, Any]]) -> str:
    keys = sorted({(line["runtime"], line["name"]) for line in lines}, key=lambda key: (key[0], _order(key[1])))
    rows = []
    for runtime, name in keys:
        mine = [line for line in lines if (line["runtime"], line["name"]) == (runtime, name)]
        scores = 100 * np.array([line["accuracy"] for line in mine])
        spread = f"{scores.min():.2f} to {scores.max():.2f}"
        differing = str(sum(line["disagreements"] for line in mine))
        size = f"{mine[0]['bytes'] / 1e6:.1f}"
        rows.append((runtime, name, str(len(mine)), f"{scores.mean():.2f}", spread, differing, size))
    names = ("runtime", "weights and activations", "seeds", "accuracy, %", "least to most", "differing", "MB")
    title = __doc__.strip().split("\n")[0]
    return "\n\n".join([header(title, "python benchmarks/qat_minilm.py"), PREAMBLE, markdown(names, rows)])


PREAMBLE = """\
Accuracy on the 1,821 proof sentences of SST-2, of which one is 0.05 points. Each runtime has quantizers in places of
its own and is trained for by itself. *differing*: sentences that the artifact and its graph answer differently, over
all seeds. The 8-bit files are not smaller because the table of word embeddings stays in float."""


def _order(name: str) -> int:
    return [*AFTER, TRAINED].index(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    lines = [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []
    done = {(line["name"], line["seed"], line["runtime"]) for line in lines}
    wanted = [(name, 0) for name in AFTER] + [(TRAINED, seed) for seed in options.seeds]
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(load_task(REFERENCE), Goal(), 0, RunFolder(Path(scratch)), print)
        for name, seed in wanted:
            for runtime in (catalog.get(Runtime, each)(**given) for each, given in RUNTIMES.items()):
                if (name, seed, str(runtime)) not in done:
                    line = judged(prepared, name, seed, options.epochs, runtime)
                    print(line, flush=True)
                    with LINES.open("a") as stream:
                        stream.write(json.dumps(line) + "\n")
                    lines.append(line)
    (HERE / "qat_minilm.md").write_text(written(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
