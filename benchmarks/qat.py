"""Quantization-aware training at 8, 4, 3 and 2 bits: accuracy of the exported artifacts, over seeds, last epoch.

    python benchmarks/qat.py [--only NAME...] [--seeds 0 1 2] [--epochs 6] [--full]

ResNet-20 on JPEG CIFAR-10, from the fine-tuned float network, trained on the 50,000 training images and judged on the
8,000 images of the proof part, by the artifacts that both integer runtimes load. Each finished (experiment, seed) is a
line of `results/qat.jsonl`; the next run goes on behind it, and the page is made from the lines. `--full` takes 30
epochs, for machines with more time.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "tasks"))

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

import cifar10
from table import header, markdown
from temper.core import catalog
from temper.core.context import Context
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.technique import applied
from temper.core.training import Batch, Training
from temper.graph.capture import capture
from temper.hardware.detect import this_host
from temper.techniques.quantization.aware_training import QuantizationAwareTraining

LINES = Path(__file__).parent / "results" / "qat.jsonl"
RUNTIMES: Mapping[str, Mapping[str, str]] = {"onnxruntime": {}, "openvino": {"precision": "f32"}}
PLACED_FOR = "onnxruntime"
BATCH, EVALUATED = 128, 500
ALLOWED = {"W8A8": 0.1, "W4A4": 0.5, "W3A3": 1.2, "W2A2": 4.0}
"""Points that each may lose against the float network, on average over the seeds, after at most six epochs."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained: a name, and the technique's knobs."""

    name: str
    knobs: Mapping[str, Any] = field(default_factory=dict)


EXPERIMENTS = (
    Experiment(name="W8A8", knobs={"num_bits": 8}),
    Experiment(name="W4A4", knobs={"num_bits": 4}),
    Experiment(name="W3A3", knobs={"num_bits": 3}),
    Experiment(name="W2A2", knobs={"num_bits": 2}),
    Experiment(name="W4A4, fixed scales", knobs={"num_bits": 4, "scale_rate": 0.0}),
    Experiment(name="W2A2, fixed scales", knobs={"num_bits": 2, "scale_rate": 0.0}),
)


class Images:
    """The training images of one epoch, shuffled, flipped and shifted, in whole batches."""

    def __init__(self, pixels: Tensor, labels: Tensor, size: int, seed: int) -> None:
        self.pixels, self.labels, self.size = pixels, labels, size
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.randperm(len(pixels), generator=self.generator)

    def __len__(self) -> int:
        return len(self.pixels) // self.size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self) * self.size, self.size):
            chosen = self.order[start : start + self.size]
            yield (cifar10.augmented(self.pixels[chosen], self.generator),), self.labels[chosen]


class Selection:
    """The 2,000 images of the selection part."""

    def __init__(self, pixels: Tensor, labels: Tensor, size: int) -> None:
        self.pixels, self.labels, self.size = pixels, labels, size

    def __len__(self) -> int:
        return -(-len(self.pixels) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.pixels), self.size):
            yield (self.pixels[start : start + self.size],), self.labels[start : start + self.size]


class Subject:
    """ResNet-20, captured, with its images."""

    def __init__(self) -> None:
        data = cifar10.data(cifar10.normalized)
        pixels, labels = cifar10.images("train")
        self.pixels, self.labels = torch.from_numpy(cifar10.normalized(pixels)), torch.from_numpy(labels)
        self.selection = tuple(map(torch.from_numpy, data.selection))
        self.proof, self.targets = torch.from_numpy(data.proof[0]), data.proof[1]
        self.calibration = data.calibration
        self.graph = capture(cifar10.trained("resnet20"), ((self.proof[:2],), {}), names=("images",))

    def training(self, seed: int, name: str) -> Training:
        return Training(
            batches=lambda size, epoch: Images(self.pixels, self.labels, size, 1000 * seed + epoch),
            selection=lambda size: Selection(*self.selection, size),
            loss=lambda outputs, targets: F.cross_entropy(outputs[0], targets),
            deadline=math.inf,
            folder=cifar10.CACHE / "qat" / f"{name}-{seed}",
            tell=lambda line: print(f"{name}, seed {seed}: {line}", flush=True),
        )

    def answers(self, graph: Graph) -> np.ndarray:
        """The classes that the graph gives the proof images."""
        with torch.no_grad():
            parts = [graph(part)[0].argmax(1) for part in self.proof.split(EVALUATED)]
        return torch.cat(parts).numpy()

    def accuracy(self, answers: np.ndarray) -> float:
        return float((answers == self.targets).mean())


def measured(subject: Subject, experiment: Experiment, seed: int, epochs: int) -> dict[str, Any]:
    """Train with one seed, export for both runtimes, and judge what each of them answers."""
    context = Context(
        runtime=catalog.get(Runtime, PLACED_FOR)(),
        target=this_host(),
        seed=seed,
        calibration=(subject.calibration,),
        training=subject.training(seed, f"{experiment.name}, {epochs} epochs"),
    )
    technique = QuantizationAwareTraining(epochs=epochs, batch=BATCH, **experiment.knobs)
    began = time.monotonic()
    graph = applied(technique, subject.graph, context)
    line: dict[str, Any] = {
        "name": experiment.name,
        "seed": seed,
        "epochs": epochs,
        "seconds": time.monotonic() - began,
        "float": subject.accuracy(subject.answers(subject.graph)),
    }
    trained = subject.answers(graph)
    line["trained"] = subject.accuracy(trained)
    for runtime, options in RUNTIMES.items():
        plug = catalog.get(Runtime, runtime)(**options)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            plug.export(graph, folder)
            runner = plug.load(folder, graph.schema, 1)
            parts = [runner.run(part.numpy())[0].argmax(1) for part in subject.proof.split(EVALUATED)]
            line[runtime] = {
                "shipped": subject.accuracy(np.concatenate(parts)),
                "disagreements": int((trained != np.concatenate(parts)).sum()),
                "bytes": sum(file.stat().st_size for file in folder.iterdir()),
                "executed": dict(plug.executed(folder, graph.schema)),
            }
    return line


def finished() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def written(lines: Sequence[Mapping[str, Any]]) -> str:
    names = ("experiment", "epochs", "seeds", "float", *RUNTIMES, "allowed loss", "differing answers", "bytes")
    keys = sorted({(line["name"], line["epochs"]) for line in lines}, key=_place)
    rows = [_row([line for line in lines if (line["name"], line["epochs"]) == key]) for key in keys]
    title = __doc__.strip().split("\n")[0]
    return "\n\n".join([header(title, "python benchmarks/qat.py"), PREAMBLE, markdown(names, rows)])


PREAMBLE = """\
Accuracy in percent of the artifact that the runtime loads, on the 8,000 proof images of JPEG CIFAR-10: the mean over
the seeds of the last epoch, with its 95 % interval (Student's t), and the mean loss against the float network.
*differing answers*: images that the artifact and the trained graph answer differently, over all seeds and runtimes."""


def _place(key: tuple[str, int]) -> tuple[int, int]:
    order = [each.name for each in EXPERIMENTS]
    return (order.index(key[0]) if key[0] in order else len(order), key[1])


def _row(lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    base = 100 * float(np.mean([line["float"] for line in lines]))
    cells = []
    for runtime in RUNTIMES:
        scores = 100 * np.array([line[runtime]["shipped"] for line in lines])
        reach = stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores) if len(scores) > 1 else math.nan
        cells.append(f"{scores.mean():.2f} ± {reach:.2f} ({base - scores.mean():+.2f})")
    differing = sum(line[runtime]["disagreements"] for line in lines for runtime in RUNTIMES)
    sizes = "; ".join(f"{np.mean([line[runtime]['bytes'] for line in lines]) / 1e3:.0f} kB" for runtime in RUNTIMES)
    first = lines[0]
    seeds = ", ".join(str(line["seed"]) for line in sorted(lines, key=lambda each: each["seed"]))
    allowed = ALLOWED.get(first["name"])
    return (
        first["name"],
        str(first["epochs"]),
        seeds,
        f"{base:.2f}",
        *cells,
        "" if allowed is None else f"{allowed:.1f}",
        str(differing),
        sizes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[each.name for each in EXPERIMENTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--full", action="store_true", help="30 epochs")
    options = parser.parse_args()
    epochs = 30 if options.full else options.epochs
    done = {(line["name"], line["seed"], line["epochs"]) for line in finished()}
    subject: Subject | None = None
    for seed in options.seeds:
        for experiment in EXPERIMENTS:
            wanted = options.only is None or experiment.name in options.only
            if wanted and (experiment.name, seed, epochs) not in done:
                subject = subject or Subject()
                line = json.dumps(measured(subject, experiment, seed, epochs))
                with LINES.open("a") as stream:
                    stream.write(line + "\n")
                print(line, flush=True)
    (Path(__file__).parent / "qat.md").write_text(written(finished()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
