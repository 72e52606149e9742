"""PyTorch's compiler: the artifact is a plain graph, compiled on each machine that loads it, once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from temper.core.explanation import Kernel
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.runtime import IntegerScheme, Runner, Runtime
from temper.core.schema import Array, Schema
from temper.hardware.compiler import require_compiler


@dataclass(frozen=True, kw_only=True)
class TorchCompiled(Runtime):
    """Run the graph as native code that Inductor, the compiler of `torch.compile`, makes of it for this processor."""

    package = "torch"
    needs_torch = True
    compiles = True
    integers = IntegerScheme(symmetric_matmul=False, integer_bias=False)

    precision: str = knob("f32", among=("f32", "bf16"), help="what products of floats are computed in")

    @property
    def arithmetic(self) -> str:
        return "bfloat16" if self.precision == "bf16" else "float32"

    @classmethod
    def require(cls) -> None:
        """Raise MissingExtra unless there are torch and a C++ compiler, which loading needs as well."""
        super().require()
        require_compiler(cls.name)

    def export(self, graph: Graph, folder: Path) -> None:
        """Write `graph.json` and `weights.safetensors`: nothing in them is native code."""
        from temper.graph.storage import save

        save(graph, folder)

    def load(self, folder: Path, schema: Schema, threads: int) -> Runner:
        """Compile the graph, or take the code from the user's cache folder where this was done before."""
        from temper.graph.inductor import Package, compiled

        return Package(compiled(folder, self.precision), threads)

    def executed(self, folder: Path, schema: Schema) -> Mapping[str, int]:
        from temper.graph.inductor import compiled, executed

        return executed(compiled(folder, self.precision))

    def profile(
        self, folder: Path, schema: Schema, threads: int, inputs: Sequence[tuple[Array, ...]]
    ) -> tuple[Kernel, ...]:
        """Medians from PyTorch's profiler, for which the graph is compiled once more."""
        from temper.graph.inductor_profile import profiled

        return profiled(folder, self.precision, threads, inputs)

    def script(self, schema: Schema, threads: int) -> str:
        called = "model(*inputs.values())"
        outputs = {"tensor": f"[{called}]", "tuple": called, "dict": f"list({called}.values())"}[schema.nesting]
        return f"""\
import temper
model = temper.load(HERE)
outputs = {outputs}
"""
