"""PyTorch's compiler, ahead of time: the artifact is a library of native code, which must be trusted to be loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.runtime import IntegerScheme, Runner, Runtime
from temper.core.schema import Schema
from temper.hardware.compiler import require_compiler

FILE = "model.pt2"


@dataclass(frozen=True, kw_only=True)
class AotInductor(Runtime):
    """Run a package of native code that AOTInductor made: quick to load, for processors like this one only."""

    package = "torch"
    needs_torch = True
    on_request = True
    compiles = True
    native = True
    integers = IntegerScheme(symmetric_matmul=False, integer_bias=False)
    untimed = (
        "a package of native code has no marks between its kernels, since they would slow it down; artifacts of "
        "torch_compiled hold the graph, and are profiled as the same code compiled with marks: explain one of those"
    )

    precision: str = knob("f32", among=("f32", "bf16"), help="what products of floats are computed in")

    @property
    def arithmetic(self) -> str:
        return "bfloat16" if self.precision == "bf16" else "float32"

    @classmethod
    def require_to_export(cls) -> None:
        """Raise MissingExtra unless there are torch and a C++ compiler; loading needs no compiler."""
        cls.require()
        require_compiler(cls.name)

    def export(self, graph: Graph, folder: Path) -> None:
        """Write `model.pt2`. Raises: TrialError if Inductor cannot compile the graph."""
        import shutil
        import tempfile

        from temper.graph.inductor import compiled
        from temper.graph.storage import save

        with tempfile.TemporaryDirectory(prefix="temper-inductor-") as stored:
            save(graph, Path(stored))
            shutil.copyfile(compiled(Path(stored), self.precision), folder / FILE)

    def load(self, folder: Path, schema: Schema, threads: int) -> Runner:
        from temper.graph.inductor import Package

        return Package(folder / FILE, threads)

    def executed(self, folder: Path, schema: Schema) -> Mapping[str, int]:
        from temper.graph.inductor import executed

        return executed(folder / FILE)

    def script(self, schema: Schema, threads: int) -> str:
        return f"""\
import torch
torch.set_num_threads({threads})
model = torch._inductor.aoti_load_package(str(HERE / "{FILE}"))
outputs = [each.numpy() for each in model(*map(torch.from_numpy, inputs.values()))]
"""
