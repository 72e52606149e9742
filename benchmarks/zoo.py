"""Many architectures, no code for any of them: capture, fusion, 8 bits and export to both integer runtimes.

    python benchmarks/zoo.py [--only NAME...] [--again] [--out benchmarks/zoo.md]

Each model (random weights, seeded) is built and worked on in a process of its own, limited in time and memory. A
finished model is one line of `results/zoo.jsonl`, and the next run goes on behind it; the table is made from the lines.
Run as a module it is the child's side: it answers `capture`, `fuse` and `quantize`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from table import header, markdown
from temper.core import catalog
from temper.core.context import Context
from temper.core.errors import NoEffect, TemperError, TrialError
from temper.core.goal import Goal
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.search import Space
from temper.core.target import Target
from temper.core.technique import Technique, applied
from temper.hardware.detect import this_host
from temper.measure.child import serve
from temper.measure.worker import Worker

HERE = Path(__file__).parent
LINES = HERE / "results" / "zoo.jsonl"
RUNTIMES: Mapping[str, Mapping[str, str]] = {"onnxruntime": {}, "openvino": {"precision": "f32"}}
"""In float32 throughout, because bfloat16 would hide whether the integers are those of the graph."""
FUSIONS = ("constants", "activations", "attention", "duplicates", "batch_norm")
"""Not `attention_products`, which does the opposite of `attention`."""
QUANTIZATION = "quantization.post_training"
LIMIT_S, MEMORY_BYTES = 400.0, 6 << 30
PERTURBATION = 1e-6
DISAGREEMENT = 5e-3
"""A difference from the fake-quantized graph that counts as failure, unless rounding explains a fifth of it."""


class Subject:
    """One model in the child's process, from its module to its artifacts."""

    def capture(self, name: str) -> dict[str, Any]:
        """Build the model and capture it."""
        from temper.graph.capture import capture
        from zoo_models import build

        model, call, names = build(name)
        began = time.perf_counter()
        self.graph = capture(model, call, names=names)
        return {
            "seconds": time.perf_counter() - began,
            "operators": _operators(self.graph),
            "dynamic": self.graph.schema.dynamic_batch,
            "parameters": sum(each.numel() for each in model.parameters()),
        }

    def fuse(self) -> dict[str, Any]:
        """Apply each fusion whose needs hold; each proves by itself that the outputs stay."""
        context = _context(catalog.get(Runtime, "onnxruntime")(), self.graph)
        used: list[str] = []
        for name in FUSIONS:
            technique = catalog.get(Technique, f"fusion.{name}")()
            if not all(need.holds(self.graph, context) for need in technique.needs):
                continue
            with suppress(NoEffect):
                self.graph = applied(technique, self.graph, context)
                used.append(name)
        return {"techniques": used, "operators": _operators(self.graph)}

    def quantize(self, runtime: str) -> dict[str, Any]:
        """Quantize for the runtime, export, load, and compare with the fake-quantized graph."""
        import numpy as np
        import torch

        plug = catalog.get(Runtime, runtime)(**RUNTIMES[runtime])
        context = _context(plug, self.graph)
        graph = self.graph
        for technique in _chain(context, graph):
            with suppress(NoEffect):
                graph = applied(technique, graph, context)
        with torch.no_grad():
            expected = [each.numpy() for each in graph(*graph.example)]
            nearby = [each.numpy() for each in _perturbed(graph)(*graph.example)]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            plug.export(graph, folder)
            executed = plug.executed(folder, graph.schema)
            runner = plug.load(folder, graph.schema, 1)
            found = runner.run(*(each.numpy() for each in graph.example))
        finite = all(bool(np.isfinite(each).all()) for each in (*expected, *found))
        return {
            "int8": executed.get("int8", 0),
            "float": sum(executed.values()) - executed.get("int8", 0),
            "finite": finite,
            "difference": _difference(found, expected) if finite else None,
            "rounding": _difference(nearby, expected) if finite else None,
            "equal_top1": float((found[0].argmax(-1) == expected[0].argmax(-1)).mean()),
        }


def _context(runtime: Runtime, graph: Graph) -> Context:
    calibration = tuple(each.numpy() for each in graph.example)
    return Context(runtime=runtime, target=_TARGET, seed=0, calibration=calibration)


def _chain(context: Context, graph: Graph) -> Sequence[Technique]:
    """Quantization behind whatever establishes what it needs, as the search would order them."""
    space = Space(
        goal=Goal(),
        runtimes=(type(context.runtime),),
        techniques=tuple(catalog.get(Technique, name) for name in catalog.names(Technique)),
        holds=lambda fact, runtime: fact.holds(graph, replace(context, runtime=runtime)),
    )
    wanted = catalog.get(Technique, QUANTIZATION)
    chain = space.chain(wanted, context.runtime)
    if chain is None:
        unmet = [str(need) for need in wanted.needs if not need.holds(graph, context)]
        raise TrialError(f"{QUANTIZATION} needs what nothing establishes: {', '.join(unmet)}")
    return [each() for each in chain]


def _operators(graph: Graph) -> int:
    return sum(node.op == "call_function" for node in graph.module.graph.nodes)


def _perturbed(graph: Graph) -> Graph:
    """The graph with every weight, scale and table of numbers changed by what rounding might change it."""
    import torch

    copy, generator = graph.copy(), torch.Generator().manual_seed(0)
    for tensor in (*copy.module.parameters(), *copy.module.buffers()):
        if tensor.is_floating_point():
            tensor.data *= 1 + PERTURBATION * torch.randn(tensor.shape, generator=generator)
    return copy


def _difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The greatest difference of any output from the expected one, relative to the latter's largest value."""
    floats = [(a, b) for a, b in zip(found, expected) if b.dtype.kind == "f"]
    return max(float(abs(a - b).max() / max(abs(b).max(), 1e-12)) for a, b in floats)


def examined(name: str) -> dict[str, Any]:
    """What came of one model: the answer or the error of each step, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        result: dict[str, Any] = {"name": name}
        worker: Worker | None = None
        try:
            for step, command, arguments in (
                ("capture", "capture", {"name": name}),
                ("fusion", "fuse", {}),
                *((runtime, "quantize", {"runtime": runtime}) for runtime in RUNTIMES),
            ):
                if worker is None or not worker.alive:
                    worker = Worker("zoo", log=log, memory_bytes=MEMORY_BYTES, threads=1)
                    if step in RUNTIMES:
                        worker.call("capture", time_s=LIMIT_S, name=name)
                        worker.call("fuse", time_s=LIMIT_S)
                try:
                    result[step] = worker.call(command, time_s=LIMIT_S, **arguments)
                except TemperError as error:
                    result[step] = {"error": f"{type(error).__name__}: {error}"}
                    if step not in RUNTIMES:
                        break
        finally:
            if worker is not None:
                worker.close()
    return result


def finished() -> dict[str, dict[str, Any]]:
    """What came of each model so far, the latest line of each."""
    lines = LINES.read_text().splitlines() if LINES.exists() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def written(lines: Sequence[Mapping[str, Any]]) -> str:
    """The page: a summary, the table of all models, and the table of what fails and why."""
    rows = [_row(line) for line in lines]
    reached = Counter(step for line in lines for step in ("capture", "fusion", *RUNTIMES) if _worked(line, step))
    failures = [
        (f"`{line['name']}`", step, reason)
        for line in lines
        for step in ("capture", "fusion", *RUNTIMES)
        if (reason := _failure(line.get(step, {})))
    ]
    summary = [(step, f"{reached[step]} of {len(lines)}") for step in ("capture", "fusion", *RUNTIMES)]
    titles = ("model", "capture", "operators", "fusion", *(f"int8 in {runtime}" for runtime in RUNTIMES))
    return "\n\n".join(
        [
            header(__doc__.strip().split("\n")[0], "python benchmarks/zoo.py"),
            PREAMBLE,
            markdown(("step", "works for"), summary),
            "## Every model",
            markdown(titles, rows),
            "## What fails, and why",
            markdown(("model", "step", "reason"), failures) if failures else "Nothing.",
        ]
    )


PREAMBLE = """\
Small members of many families of timm and transformers, with random weights and a batch of eight small inputs: whether
one path serves them all, not how fast or how good they are.

*capture*: seconds, and whether the batch is dynamic. *operators*: how many the captured graph calls, and how many are
left after fusion. *int8*: how many operators the runtime executes in integers, of all that it executes; the greatest
difference between the artifact's outputs and those of its fake-quantized graph, as a share of the largest output; in
brackets the same between the graph and itself with all its tensors changed by one part in a million, which is what
rounding can do where values lie on the border of two integers; and how often both have the same largest output.
Deep networks with random weights amplify a single flipped integer, so what counts as failure is a difference of more
than 0.5 % and of more than five times what is in brackets. OpenVINO computes its float operators in float32 here,
because bfloat16 would hide the difference."""


def _row(line: Mapping[str, Any]) -> tuple[str, ...]:
    capture, fusion = line["capture"], line.get("fusion", {})
    if "error" in capture:
        return (f"`{line['name']}`", "fails", *[""] * (2 + len(RUNTIMES)))
    seconds = f"{capture['seconds']:.1f} s, {'dynamic' if capture['dynamic'] else 'fixed'}"
    after = f" → {fusion['operators']}" if "operators" in fusion else ""
    techniques = ", ".join(fusion.get("techniques", ())) or ("fails" if "error" in fusion else "none")
    cells = (_cell(line.get(runtime, {})) for runtime in RUNTIMES)
    return (f"`{line['name']}`", seconds, f"{capture['operators']}{after}", techniques, *cells)


def _cell(found: Mapping[str, Any]) -> str:
    if "int8" not in found:
        return "fails" if found else ""
    if not found["finite"]:
        return "outputs are not finite"
    if not found.get("int8", 1):
        return "no operator runs in integers"
    share = f"{found['int8']} of {found['int8'] + found['float']}"
    return f"{share}; {found['difference']:.0e} ({found['rounding']:.0e}); {100 * found['equal_top1']:.0f} %"


def _worked(line: Mapping[str, Any], step: str) -> bool:
    return step in line and not _failure(line[step])


def _failure(found: Mapping[str, Any]) -> str:
    """Why a step counts as failed, or nothing; a difference that rounding explains is no failure."""
    if "error" in found:
        return _short(found["error"])
    if not found.get("finite", True):
        return "outputs are not finite"
    difference, rounding = found.get("difference", 0.0), found.get("rounding", 0.0)
    if difference > max(DISAGREEMENT, 5 * rounding):
        return f"the artifact's outputs differ from the graph's by {difference:.0e}, rounding explains {rounding:.0e}"
    return ""


def _short(error: str) -> str:
    return " ".join(error.replace("|", "/").split())[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", help="these models alone")
    parser.add_argument("--again", action="store_true", help="also those that have a line already")
    parser.add_argument("--out", type=Path, default=HERE / "zoo.md")
    options = parser.parse_args()
    from zoo_models import names

    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    LINES.parent.mkdir(exist_ok=True)
    done = finished()
    for name in options.only or names():
        if name in done and not options.again:
            continue
        line = json.dumps(examined(name))
        with LINES.open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)
    done = finished()
    ordered = [done[name] for name in names() if name in done]
    LINES.write_text("".join(json.dumps(line) + "\n" for line in ordered))
    options.out.write_text(written(ordered) + "\n", encoding="utf-8")


_TARGET: Target = this_host()

if __name__ == "__main__":
    if len(sys.argv) == 1 and __spec__ is not None:
        subject = Subject()
        serve({"capture": subject.capture, "fuse": subject.fuse, "quantize": subject.quantize})
    else:
        main()
