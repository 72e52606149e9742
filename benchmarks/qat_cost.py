"""What a step of quantization-aware training costs, against a step of plain training of the same network.

    python benchmarks/qat_cost.py [--threads 1 2] [--rounds 45]

ResNet-20, 128 images of JPEG CIFAR-10, float32, channels last; forward, loss, backward and the optimizer's step, with
what the technique does behind it. All take turns, a step each, in random order.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from qat import BATCH, PLACED_FOR, Images, Subject
from table import header, markdown
from temper.core import catalog
from temper.core.context import Context
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.graph.facts import float_layers
from temper.graph.learned_quantizers import learn
from temper.graph.mode import set_training
from temper.graph.surgery import tensor_of
from temper.hardware.detect import this_host
from temper.measure.statistics import latency_ratio
from temper.techniques.quantization.aware_training import QuantizationAwareTraining

PLAIN = "plain, compiled"
WARM_UP = 3
Step = Callable[[Tensor, Tensor], None]


def contestants(subject: Subject) -> dict[str, Step]:
    plain = subject.graph.copy()
    set_training(plain, True)
    return {
        PLAIN: _step(plain, [], compiled=True),
        "W8A8, compiled": _step(*_quantized(subject, 8), compiled=True),
        "W4A4, compiled": _step(*_quantized(subject, 4), compiled=True),
        "plain, eager": _step(plain.copy(), [], compiled=False),
        "W8A8, eager": _step(*_quantized(subject, 8), compiled=False),
    }


def _quantized(subject: Subject, bits: int) -> tuple[Graph, list[Node]]:
    """The graph as the technique trains it, and its batch norms."""
    technique = QuantizationAwareTraining(num_bits=bits)
    runtime = catalog.get(Runtime, PLACED_FOR)()
    context = Context(runtime=runtime, target=this_host(), seed=0, calibration=(subject.calibration[:64],))
    graph = subject.graph.copy()
    _, norms = technique.quantized(graph, context, technique.bits(graph, float_layers(graph)))
    set_training(graph, True)
    return graph, norms


def _step(graph: Graph, norms: Sequence[Node], *, compiled: bool) -> Step:
    learned, gammas = learn(graph), [tensor_of(graph.module, norm.args[1]) for norm in norms]
    graph.module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(graph.module.parameters(), 1e-5, momentum=0.9, nesterov=True)
    module = torch.compile(graph.module, dynamic=False) if compiled else graph.module

    def step(images: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(module(images)[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for each in learned:
                each.clamp()
            for gamma in gammas:
                gamma.clamp_(min=0)

    return step


def timed(steps: Mapping[str, Step], images: Tensor, labels: Tensor, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each contestant's steps, (rounds,)."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    rng = np.random.default_rng(0)
    for number in range(WARM_UP + rounds):
        for name in rng.permutation(list(steps)).tolist():
            began = time.perf_counter()
            steps[name](images, labels)
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=45)
    options = parser.parse_args()
    subject = Subject()
    (images,), labels = next(iter(Images(subject.pixels, subject.labels, BATCH, 0)))
    images = images.cpu().contiguous(memory_format=torch.channels_last)
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        torch.compiler.reset()
        seconds = timed(contestants(subject), images, labels.cpu(), options.rounds)
        for name, each in seconds.items():
            ratio = latency_ratio(seconds[PLAIN], each)
            shown = f"{ratio.ratio:.2f} ({ratio.lower:.2f} to {ratio.upper:.2f})"
            rows.append((name, str(threads), f"{1e3 * np.median(each):.0f}", shown))
            print(*rows[-1], flush=True)
    title = __doc__.strip().split("\n")[0]
    table = markdown(("step", "threads", "ms", "time against plain, compiled"), rows)
    page = "\n\n".join([header(title, "python benchmarks/qat_cost.py"), table])
    Path(__file__).with_suffix(".md").write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
