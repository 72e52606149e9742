"""ExecuTorch with XNNPACK: the runtime of phones and boards, which also runs on this host."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from temper.core.errors import TrialError
from temper.core.explanation import Kernel
from temper.core.graph import Graph
from temper.core.runtime import Runner, Runtime
from temper.core.schema import Array, Schema

FILE, OPERATORS, INSTRUCTIONS = "model.pte", "operators.json", "instructions.json"
LARGEST_BATCH = 32
"""ExecuTorch plans its memory beforehand, so a batch must have a limit; larger ones are run in parts."""


@dataclass(frozen=True, kw_only=True)
class ExecuTorch(Runtime):
    """Run the graph in float32 with XNNPACK's kernels, and with ExecuTorch's portable ones where XNNPACK has none."""

    package = "executorch"
    extra = "executorch"
    needs_torch = True
    on_request = True

    def export(self, graph: Graph, folder: Path) -> None:
        """Write `model.pte`, who executes how many operators, and what each instruction of the program calls.

        Raises: TrialError if the graph cannot be lowered.
        """
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        from temper.graph.executorch_profile import instructions_of
        from temper.graph.programs import exported

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lowered = to_edge_transform_and_lower(
                    exported(graph, largest_batch=LARGEST_BATCH),
                    partitioner=[XnnpackPartitioner()],
                    compile_config=EdgeCompileConfig(_check_ir_validity=False),
                )
                operators = _operators(lowered.exported_program().graph_module)
                program = lowered.to_executorch()
                instructions = instructions_of(program, lowered.exported_program().graph_module, graph)
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise TrialError(f"ExecuTorch cannot lower the graph: {type(error).__name__}: {reason}") from error
        (folder / FILE).write_bytes(program.buffer)
        (folder / OPERATORS).write_text(json.dumps(operators), encoding="utf-8")
        (folder / INSTRUCTIONS).write_text(json.dumps(instructions), encoding="utf-8")

    def load(self, folder: Path, schema: Schema, threads: int) -> Runner:
        """Load the program. Its threads are those of the whole process, so the last load decides."""
        return _Method(_program(folder, threads).load_method("forward"), schema.dynamic_batch)

    def profile(
        self, folder: Path, schema: Schema, threads: int, inputs: Sequence[tuple[Array, ...]]
    ) -> tuple[Kernel, ...]:
        """Means from the events that ExecuTorch records on request, the first call's among them."""
        import tempfile

        from temper.graph.executorch_profile import kernels_of

        program = _program(folder, threads, events=True)
        runner = _Method(program.load_method("forward"), schema.dynamic_batch)
        for arrays in inputs:
            runner.run(*arrays)
        with tempfile.TemporaryDirectory() as scratch:
            events = Path(scratch) / "events.etdp"
            program.write_etdump_result_to_file(str(events), None)
            instructions = json.loads((folder / INSTRUCTIONS).read_text(encoding="utf-8"))
            return kernels_of(events, instructions, len(inputs))

    def executed(self, folder: Path, schema: Schema) -> Mapping[str, int]:
        """Operators in XNNPACK's share of the program, and `portable` ones outside of it, as they were lowered."""
        operators = json.loads((folder / OPERATORS).read_text(encoding="utf-8"))
        return {str(name): int(count) for name, count in operators.items()}

    def script(self, schema: Schema, threads: int) -> str:
        return f"""\
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime
portable_lib._unsafe_reset_threadpool({threads})
program = Runtime.get().load_program(HERE / "{FILE}")
method = program.load_method("forward")
outputs = [each.numpy() for each in method.execute([*map(torch.from_numpy, inputs.values())])]
"""


def _program(folder: Path, threads: int, *, events: bool = False) -> Any:
    """The loaded program, which records events if that is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime as Loader

    portable_lib._unsafe_reset_threadpool(threads)
    return Loader.get().load_program(folder / FILE, enable_etdump=events)


def _operators(module: Any) -> dict[str, int]:
    """How many operators XNNPACK took over, in float32, and how many are left to portable kernels."""
    delegated = [
        node
        for inner in module.children()
        if hasattr(inner, "original_module")
        for node in inner.original_module.graph_module.graph.nodes
    ]
    left = [node for node in module.graph.nodes if type(node.target).__name__ == "EdgeOpOverload"]
    counts = {"float32": sum(node.op == "call_function" for node in delegated), "portable": len(left)}
    return {name: count for name, count in counts.items() if count}


class _Method:
    def __init__(self, method: Any, splits: bool) -> None:
        self._execute, self._splits = method.execute, splits

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        if not self._splits or len(arrays[0]) <= LARGEST_BATCH:
            return self._part(arrays)
        starts = range(0, len(arrays[0]), LARGEST_BATCH)
        parts = [self._part([each[start : start + LARGEST_BATCH] for each in arrays]) for start in starts]
        return tuple(np.concatenate(each) for each in zip(*parts))

    def _part(self, arrays: Any) -> tuple[Array, ...]:
        import torch

        outputs = self._execute([torch.from_numpy(array.copy()) for array in arrays])
        # The program's own memory: the next call writes to it again.
        return tuple(np.array(output.numpy()) for output in outputs)
