"""The kernels of an ExecuTorch program: what its instructions call, and how long the events say that they took."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from temper.core.explanation import Kernel
from temper.core.graph import Graph
from temper.graph.facts import weighted_layers
from temper.graph.sensitivity import weight_of

PRODUCTS = re.compile("Convolution|Deconvolution|Fully Connected")
"""What XNNPACK calls the operators that read a layer's weight."""


def instructions_of(program: Any, lowered: GraphModule, graph: Graph) -> list[dict[str, Any]]:
    """What each instruction of a program calls, and the layers of the graph that a delegate computes in it, in order.

    `lowered` is the graph that the program was made of, in which delegates hold what they took over.
    """
    layers: dict[str, list[str]] = {}
    for node in weighted_layers(graph):
        layers.setdefault(weight_of(graph, node)[0], []).append(node.name)
    calls = [node for node in lowered.graph.nodes if "executorch_call_delegate" in str(node.target)]
    inside = iter([_layers(getattr(lowered, call.args[0].target).original_module, layers) for call in calls])
    plan = program.executorch_program.execution_plan[0]
    found = []
    for instruction in plan.chains[0].instructions:
        called = instruction.instr_args
        if hasattr(called, "delegate_index"):
            found.append({"operator": plan.delegates[called.delegate_index].id, "layers": next(inside)})
        else:
            operator = plan.operators[called.op_index].name if hasattr(called, "op_index") else type(called).__name__
            found.append({"operator": operator, "layers": []})
    return found


def kernels_of(events: Path, instructions: Sequence[Mapping[str, Any]], calls: int) -> tuple[Kernel, ...]:
    """The kernels, with their seconds a call, of a file of events in which so many calls were recorded.

    XNNPACK counts whole microseconds: an operator's time is only as good as the mean over the calls. What of a
    delegate's time is none of its operators' stands behind them, under the delegate's name.
    """
    recorded = _seconds(events, calls)
    kernels: list[Kernel] = []
    for number, instruction in enumerate(instructions):
        operator = instruction["operator"]
        inner = {name: seconds for (place, name), seconds in recorded.items() if place == number and name}
        products = [name for name in inner if PRODUCTS.match(name)]
        known = len(products) == len(instruction["layers"])
        covers = dict(zip(products, instruction["layers"])) if known else {}
        for name, seconds in inner.items():
            shown, layers = re.sub(r" #\d+$", "", name), ((covers[name],) if name in covers else ())
            kernels.append(Kernel(name=name, operator=shown, precision="float32", seconds=seconds, covers=layers))
        rest = recorded.get((number, ""), 0.0) - sum(inner.values())
        if rest > 0:
            kernels.append(Kernel(name=f"{operator} {number}", operator=operator, precision="float32", seconds=rest))
    return tuple(kernels)


def _seconds(events: Path, calls: int) -> dict[tuple[int, str], float]:
    """Seconds a call of each instruction, under no name, and of each operator that a delegate runs in it, by name."""
    logging.getLogger("executorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.devtools import Inspector

        blocks = Inspector(etdump_path=str(events)).event_blocks
    found: dict[tuple[int, str], float] = {}
    for block in blocks:
        for event in block.events if block.name == "Execute" else ():
            if event.is_delegated_op or event.name in ("OPERATOR_CALL", "DELEGATE_CALL"):
                key = (event._instruction_id, event.name if event.is_delegated_op else "")
                # Milliseconds, one number a call.
                found[key] = found.get(key, 0.0) + sum(event.perf_data.raw) * 1e-3 / calls
    return found


def _layers(module: Any, layers: Mapping[str, list[str]]) -> list[str]:
    """The layers that a delegate took over, in its order, by the weights that its operators read.

    Layers of one weight are taken in the graph's order: each is handed out once.
    """
    return [layers[weight].pop(0) for weight in _weights(module) if layers.get(weight)]


def _weights(module: Any) -> Iterator[str]:
    """The names of the parameters that the operators of an exported program read, one after the other."""
    stored = module.graph_signature.inputs_to_parameters
    for node in module.graph_module.graph.nodes:
        for source in node.all_input_nodes:
            if source.name in stored:
                yield stored[source.name].removeprefix("module.")
