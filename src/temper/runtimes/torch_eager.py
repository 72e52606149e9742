"""PyTorch, operator by operator: the reference for quality, and a weak baseline for speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from temper.core.explanation import Kernel
from temper.core.graph import Graph
from temper.core.runtime import Runner, Runtime
from temper.core.schema import Array, Schema

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class TorchEager(Runtime):
    """Run the captured graph in PyTorch, one ATen operator after the other, in float32."""

    package = "torch"
    needs_torch = True

    def export(self, graph: Graph, folder: Path) -> None:
        """Write `graph.json` and `weights.safetensors`: nothing in them is unpickled or evaluated on load."""
        from temper.graph.storage import save

        save(graph, folder)

    def load(self, folder: Path, schema: Schema, threads: int) -> Runner:
        import torch

        from temper.graph.storage import load

        torch.set_num_threads(threads)
        return _Module(load(folder).module)

    def executed(self, folder: Path, schema: Schema) -> Mapping[str, int]:
        from temper.graph.storage import load

        nodes = load(folder).module.graph.nodes
        return {"float32": sum(node.op == "call_function" for node in nodes)}

    def profile(
        self, folder: Path, schema: Schema, threads: int, inputs: Sequence[tuple[Array, ...]]
    ) -> tuple[Kernel, ...]:
        """Medians of the operators, each timed by itself as the graph is interpreted."""
        import torch

        from temper.graph.storage import load

        torch.set_num_threads(threads)
        module = load(folder).module
        timed: dict[torch.fx.Node, list[float]] = {}

        class Timed(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> object:
                began = perf_counter()
                result = super().run_node(n)
                if n.op == "call_function":
                    timed.setdefault(n, []).append(perf_counter() - began)
                return result

        with torch.inference_mode():
            for arrays in inputs:
                Timed(module).run(*(torch.from_numpy(array.copy()) for array in arrays))
        return tuple(
            Kernel(
                name=node.name,
                operator=str(getattr(node.target, "_opname", node.target)),
                precision="float32",
                seconds=median(seconds),
                covers=(node.name,),
            )
            for node, seconds in timed.items()
        )

    def script(self, schema: Schema, threads: int) -> str:
        called = "model(*inputs.values())"
        outputs = {"tensor": f"[{called}]", "tuple": called, "dict": f"list({called}.values())"}[schema.nesting]
        return f"""\
import temper
model = temper.load(HERE)
outputs = {outputs}
"""


class _Module:
    def __init__(self, module: "torch.nn.Module") -> None:
        self._module = module

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        import torch

        with torch.inference_mode():
            # Copies: torch takes no negative strides, and an in-place operator must not reach the caller's arrays.
            outputs = self._module(*(torch.from_numpy(array.copy()) for array in arrays))
        return tuple(output.numpy() for output in outputs)
