"""Quantization-aware training at 8 to 2 bits: accuracy of the exported artifacts over seeds, after the last epoch.

    python benchmarks/qat.py [--only NAME ...] [--seeds 0 1 2] [--full] [--train]

ResNet-20 on JPEG CIFAR-10, from the fine-tuned float network, trained on the 50,000 training images, on the graphics
processor where there is one, and judged on the 8,000 images of the proof part by the artifacts that both integer
runtimes load. Every trained graph is kept in the cache, so that one machine may train (`--train` does no more) and
another one judge. Each judged (experiment, seed, epochs) is a line of `results/qat.jsonl`; the next run goes on behind
it, and the page is made from the lines. Training takes six epochs; `--full` makes the lines that take more. Peers need
the extra `bench`.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "tasks"))

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

import cifar10
from qat_bits import mixed
from records import read_json, write_json
from table import header, markdown
from temper.core import catalog
from temper.core.context import Context
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.technique import applied
from temper.core.training import Batch, Training
from temper.graph.capture import capture
from temper.graph.storage import load, save
from temper.hardware.detect import this_host
from temper.techniques.quantization.aware_training import QuantizationAwareTraining

LINES = Path(__file__).parent / "results" / "qat.jsonl"
KEPT = cifar10.CACHE / "qat"
RUNTIMES: Mapping[str, Mapping[str, str]] = {"onnxruntime": {}, "openvino": {"precision": "f32"}}
PLACED_FOR = "onnxruntime"
BATCH, EVALUATED, USUAL = 128, 500, 6


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained: a name, the technique's knobs, and the kilobytes that mixed bits of weights may fill, if any.

    `runtime` is the one whose quantizers are trained. `peer`: trained by the library of that name instead, at so many
    bits. `epochs` are those of its trainings, and `allowed` is what each may lose against the float network, in points,
    on average over the seeds.
    """

    name: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    mixed_kb: int = 0
    runtime: str = PLACED_FOR
    peer: str = ""
    epochs: tuple[int, ...] = (USUAL,)
    allowed: Mapping[int, float] = field(default_factory=dict)


SLOW_DECAY = 2.5e-5
"""The weight decay of Esser et al. (section 3) for 2 bits: a quarter of that of full precision."""
EXPERIMENTS = (
    Experiment(name="W8A8", knobs={"num_bits": 8}, allowed={USUAL: 0.1}),
    Experiment(name="W8A8, for OpenVINO", knobs={"num_bits": 8}, runtime="openvino"),
    Experiment(name="W4A4", knobs={"num_bits": 4}, epochs=(USUAL, 30), allowed={USUAL: 0.5, 30: 0.3}),
    Experiment(name="W3A3", knobs={"num_bits": 3}, allowed={USUAL: 1.2}),
    Experiment(name="W2A2", knobs={"num_bits": 2}, epochs=(USUAL, 30), allowed={USUAL: 4.0, 30: 1.6}),
    *(
        Experiment(
            name=f"W2A2, rate {rate}, decay {SLOW_DECAY}{', progressive' if progressive else ''}",
            knobs={"num_bits": 2, "learning_rate": rate, "weight_decay": SLOW_DECAY, "progressive": progressive},
            epochs=epochs,
            allowed={100: 1.6},
        )
        for rate, progressive, epochs in ((0.05, False, (30, 100)), (0.1, False, (30,)), (0.05, True, (30,)))
    ),
    Experiment(name="W2A2, progressive", knobs={"num_bits": 2, "progressive": True}),
    Experiment(name="W2A2, norms frozen for the last 2 epochs", knobs={"num_bits": 2, "frozen_norms": 1 / 3}),
    Experiment(name="W2A2, oscillations frozen", knobs={"num_bits": 2, "freeze_flips": 0.01}),
    Experiment(name="W4A4, fixed scales", knobs={"num_bits": 4, "scale_rate": 0.0}),
    Experiment(name="W2A2, fixed scales", knobs={"num_bits": 2, "scale_rate": 0.0}),
    Experiment(name="uniform W2A8 (73 kB)", knobs={"weight_bits": 2}),
    Experiment(name="mixed weights, A8, 85 kB", mixed_kb=85),
    Experiment(name="uniform W3A8 (107 kB)", knobs={"weight_bits": 3}),
    Experiment(name="mixed weights, A8, 110 kB", mixed_kb=110),
    Experiment(name="uniform W4A8 (140 kB)", knobs={"weight_bits": 4}),
    Experiment(name="mixed weights, A8, 140 kB", mixed_kb=140),
    *(Experiment(name=f"Brevitas W{n}A{n}", knobs={"num_bits": n}, peer="brevitas") for n in (8, 4, 3, 2)),
)


class Images:
    """The training images of one epoch, shuffled, flipped and shifted, in whole batches.

    What is random about them is drawn for the whole epoch at once, so that no step waits for it.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, size: int, seed: int) -> None:
        self.pixels, self.labels, self.size = pixels, labels, size
        generator = torch.Generator().manual_seed(seed)
        self.order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
        self.changes = cifar10.changes(len(pixels), generator).to(pixels.device)

    def __len__(self) -> int:
        return len(self.pixels) // self.size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self) * self.size, self.size):
            chosen = self.order[start : start + self.size]
            yield (cifar10.augmented(self.pixels[chosen], self.changes[:, chosen]),), self.labels[chosen]


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
    """ResNet-20, captured, with its images; the training images lie on the device that trains."""

    def __init__(self) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        data = cifar10.data(cifar10.normalized)
        pixels, labels = cifar10.images("train")
        self.pixels = torch.from_numpy(cifar10.normalized(pixels)).to(self.device)
        self.labels = torch.from_numpy(labels).to(self.device)
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
            folder=KEPT / "checkpoints" / f"{name}-{seed}",
            tell=lambda line: print(f"{name}, seed {seed}: {line}", flush=True),
            device=self.device,
        )

    def answers(self, call: Callable[[Tensor], Tensor]) -> NDArray[np.int64]:
        """The classes that something gives the proof images."""
        with torch.no_grad():
            return torch.cat([call(part).argmax(1) for part in self.proof.split(EVALUATED)]).numpy()

    def accuracy(self, answers: NDArray[np.int64]) -> float:
        return float((answers == self.targets).mean())

    @cached_property
    def float_accuracy(self) -> float:
        return self.accuracy(self.answers(lambda part: self.graph(part)[0]))


def kept(experiment: Experiment, seed: int, epochs: int) -> Path:
    name = "".join(letter if letter.isalnum() else "_" for letter in experiment.name)
    return KEPT / "graphs" / f"{name}-{epochs}-{seed}"


def train(subject: Subject, experiment: Experiment, seed: int, epochs: int) -> None:
    """Train with one seed, and keep the graph."""
    place = kept(experiment, seed, epochs)
    if place.exists():
        return
    knobs = dict(experiment.knobs)
    if experiment.mixed_kb:
        images, labels = subject.pixels[:2000], subject.labels[:2000]
        knobs = {"layer_bits": mixed(subject.graph, images, labels, 1000 * experiment.mixed_kb)}
    context = Context(
        runtime=catalog.get(Runtime, experiment.runtime)(**RUNTIMES[experiment.runtime]),
        target=this_host(),
        seed=seed,
        calibration=(subject.calibration,),
        training=subject.training(seed, f"{place.name}"),
    )
    graph = applied(QuantizationAwareTraining(epochs=epochs, batch=BATCH, **knobs), subject.graph, context)
    unfinished = place.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save(graph, unfinished)
    device = torch.cuda.get_device_name() if subject.device == "cuda" else this_host().processor
    write_json(unfinished / "about.json", {"device": device, "knobs": knobs})
    unfinished.rename(place)
    shutil.rmtree(context.training.folder)


def train_peer(subject: Subject, experiment: Experiment, seed: int, epochs: int) -> None:
    """Train the peer's network with one seed, and keep what it answers."""
    place = kept(experiment, seed, epochs)
    if place.exists():
        return
    import qat_brevitas

    model = qat_brevitas.trained(
        experiment.knobs["num_bits"], subject.training(seed, place.name), epochs=epochs, batch=BATCH, seed=seed
    )
    answers = subject.answers(lambda part: model(part.to(subject.device)).cpu())
    unfinished = place.with_suffix(".tmp")
    unfinished.mkdir(parents=True, exist_ok=True)
    np.save(unfinished / "answers.npy", answers)
    device = torch.cuda.get_device_name() if subject.device == "cuda" else this_host().processor
    write_json(unfinished / "about.json", {"device": device, "knobs": dict(experiment.knobs)})
    unfinished.rename(place)


def judged(subject: Subject, experiment: Experiment, seed: int, epochs: int) -> dict[str, Any]:
    """What was kept, exported for both runtimes and judged by what each of them answers."""
    place = kept(experiment, seed, epochs)
    line: dict[str, Any] = {
        "name": experiment.name,
        "seed": seed,
        "epochs": epochs,
        **read_json(place / "about.json"),
        "float": subject.float_accuracy,
    }
    if experiment.peer:
        line["trained"] = subject.accuracy(np.load(place / "answers.npy"))
        return line
    graph = load(place)
    trained = subject.answers(lambda part: graph(part)[0])
    line["trained"] = subject.accuracy(trained)
    for runtime in RUNTIMES if experiment.runtime == PLACED_FOR else (experiment.runtime,):
        chosen = catalog.get(Runtime, runtime)(**RUNTIMES[runtime])
        line[runtime] = _shipped(subject, graph, trained, chosen)
    return line


def _shipped(subject: Subject, graph: Graph, trained: NDArray[np.int64], runtime: Runtime) -> dict[str, Any]:
    """What the artifact for the runtime answers, and what it takes on disk."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runtime.export(graph, folder)
        runner = runtime.load(folder, graph.schema, 1)
        answers = subject.answers(lambda part: torch.from_numpy(runner.run(part.numpy())[0]))
        return {
            "shipped": subject.accuracy(answers),
            "disagreements": int((trained != answers).sum()),
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "executed": dict(runtime.executed(folder, graph.schema)),
        }


def finished() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def written(lines: Sequence[Mapping[str, Any]]) -> str:
    names = ("experiment", "epochs", "seeds", "float", "trained", *RUNTIMES, "allowed loss", "differing", "kB on disk")
    keys = sorted({(line["name"], line["epochs"]) for line in lines}, key=_place)
    rows = [_row([line for line in lines if (line["name"], line["epochs"]) == key]) for key in keys]
    title = __doc__.strip().split("\n")[0]
    return "\n\n".join([header(title, "python benchmarks/qat.py"), PREAMBLE, markdown(names, rows)])


PREAMBLE = """\
Accuracy in percent on the 8,000 proof images of JPEG CIFAR-10 after the last epoch: the mean over the seeds with its
95 % interval (Student's t), and the mean loss against the float network. *trained* is the graph as it was trained, or
the peer's network, which is not exported; the next columns are the artifacts that the runtimes load. *differing*:
images that the artifact of each runtime and its graph answer differently, over all seeds. Where no runtime is named,
graphs are trained as ONNX Runtime executes them: it differs where a last bit decides between two integers. OpenVINO
leaves out the rounding between a convolution and a residual sum, and differs more from such graphs; those that are
trained for it have none there. First and last layers have 8 bits. *kB on disk* are whole artifacts, for each runtime;
what a table row names in kB is what weights, scales and biases take."""


def _place(key: tuple[str, int]) -> tuple[int, int]:
    return (key[1], [each.name for each in EXPERIMENTS].index(key[0]))


def _row(lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    first, base = lines[0], 100 * float(np.mean([line["float"] for line in lines]))
    runtimes = [runtime for runtime in RUNTIMES if runtime in first]
    shipped = {runtime: _mean([line[runtime]["shipped"] for line in lines], base) for runtime in runtimes}
    differing = "; ".join(str(sum(line[runtime]["disagreements"] for line in lines)) for runtime in runtimes)
    sizes = "; ".join(f"{np.mean([line[runtime]['bytes'] for line in lines]) / 1e3:.0f}" for runtime in runtimes)
    (experiment,) = (each for each in EXPERIMENTS if each.name == first["name"])
    allowed = experiment.allowed.get(first["epochs"])
    return (
        first["name"],
        str(first["epochs"]),
        str(len(lines)),
        f"{base:.2f}",
        _mean([line["trained"] for line in lines], base),
        *(shipped.get(runtime, "") for runtime in RUNTIMES),
        "" if allowed is None else f"{allowed:.1f}",
        differing,
        sizes,
    )


def _mean(scores: Sequence[float], base: float) -> str:
    """The mean in percent, how far its interval reaches, and what it differs from the float network's."""
    percent = 100 * np.array(scores)
    spread = f" ± {stats.t.ppf(0.975, len(scores) - 1) * stats.sem(percent):.2f}" if len(scores) > 1 else ""
    return f"{percent.mean():.2f}{spread} ({percent.mean() - base:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[each.name for each in EXPERIMENTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--full", action="store_true", help=f"those of more than {USUAL} epochs")
    parser.add_argument("--train", action="store_true", help="only train, and keep the graphs")
    options = parser.parse_args()
    done = {(line["name"], line["seed"], line["epochs"]) for line in finished()}
    wanted = [each for each in EXPERIMENTS if options.only is None or each.name in options.only]
    trainings = [(each, epochs) for each in wanted for epochs in each.epochs if (epochs > USUAL) == options.full]
    subject: Subject | None = None
    for seed in options.seeds:
        for experiment, epochs in trainings:
            if (experiment.name, seed, epochs) in done:
                continue
            subject = subject or Subject()
            (train_peer if experiment.peer else train)(subject, experiment, seed, epochs)
            if not options.train:
                line = json.dumps(judged(subject, experiment, seed, epochs))
                with LINES.open("a") as stream:
                    stream.write(line + "\n")
                print(line, flush=True)
    if not options.train:
        (Path(__file__).parent / "qat.md").write_text(written(finished()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
