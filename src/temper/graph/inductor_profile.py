"""The kernels of compiled code, timed by PyTorch's profiler."""

import re
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, record_function

from temper.core.explanation import Kernel
from temper.core.graph import Graph
from temper.core.schema import Array
from temper.graph.facts import weighted_layers
from temper.graph.inductor import LibraryCall, Package, compiled, fused_kernels, library_calls, source_of
from temper.graph.sensitivity import weight_of
from temper.graph.storage import load

CALL = "temper.call"
FUSED, LIBRARY = re.compile(r"(?:graph_\d+_)?(cpp_fused_\w+)"), "aoti_torch_cpu_"
"""What the marks are called: the profiler's other events are parts of these, or of the call."""


def profiled(stored: Path, precision: str, threads: int, inputs: Sequence[tuple[Array, ...]]) -> tuple[Kernel, ...]:
    """Medians of the kernels that Inductor makes of the graph in the folder `stored`, in order of execution.

    The graph is compiled once more, to code that tells the profiler of its kernels. Raises: as `compiled` does.
    """
    package = compiled(stored, precision, marked=True)
    source = source_of(package)
    fused, calls = fused_kernels(source), library_calls(source)
    layers = _layers(calls, load(stored))
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for index, call in enumerate(calls):
        waiting[call.name].append(index)

    def kernel(events: Sequence[tuple[str, float]]) -> Kernel:
        name, seconds = events[0][0], median(each for _, each in events)
        if own := FUSED.fullmatch(name):
            operator = re.sub(r"_\d+$", "", own[1])
            return Kernel(name=own[1], operator=operator, precision=fused[own[1]], seconds=seconds)
        called = name.removeprefix(LIBRARY)
        index = waiting[called].popleft()
        covers = layers.get(index, ())
        return Kernel(name=called, operator=called, precision=calls[index].precision, seconds=seconds, covers=covers)

    return tuple(map(kernel, zip(*_runs(Package(package, threads), inputs), strict=True)))


def _runs(package: Package, inputs: Sequence[tuple[Array, ...]]) -> list[list[tuple[str, float]]]:
    """Name and seconds of each kernel, run by run."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        for arrays in inputs:
            with record_function(CALL):
                package.run(*arrays)
    runs: dict[int, list[tuple[str, float]]] = {}
    for event in profiler.events():
        parent = event.cpu_parent
        if (
            parent is not None
            and parent.name == CALL
            and (FUSED.fullmatch(event.name) or event.name.startswith(LIBRARY))
        ):
            runs.setdefault(parent.id, []).append((event.name, event.time_range.elapsed_us() * 1e-6))
    return list(runs.values())


def _layers(calls: Sequence[LibraryCall], graph: Graph) -> dict[int, tuple[str, ...]]:
    """The layer that each call computes, by the call's place.

    The code does not name layers. Calls that read a weight come in the graph's order: they are taken for the layers if
    they are as many, with weights of the same sizes; if not, no call is taken for any.
    """
    products = [(index, sorted(call.weight)) for index, call in enumerate(calls) if call.weight is not None]
    layers = [(node.name, sorted(weight_of(graph, node)[1].shape)) for node in weighted_layers(graph)]
    if [sizes for _, sizes in products] != [sizes for _, sizes in layers]:
        return {}
    return {index: (name,) for (index, _), (name, _) in zip(products, layers)}
