"""A runtime: what executes the artifact."""

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from temper.core.errors import MissingExtra
from temper.core.explanation import Kernel
from temper.core.graph import Graph
from temper.core.knobs import Plug
from temper.core.schema import Array, Schema


class Runner(Protocol):
    """A loaded model."""

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """The flat outputs for one batch of flat inputs; the returned arrays belong to the caller."""
        ...


@dataclass(frozen=True, kw_only=True)
class Runtime(Plug):
    """A frozen dataclass of knobs that exports a graph into a folder and loads it from there.

    `package` is what must be importable, `extra` the optional dependency of temper that installs it. A runtime
    that reads `fake_quantize` nodes as integers says so in `integers`, and which scheme it executes fastest. One that
    `compiles` takes a compiler's time for every graph, so a search turns to it after the others; one that is
    `on_request` (it needs trust, or is meant for other machines) is only used where the caller names it. One whose
    artifacts are `native` code loads them only for those who trust whoever made them. One that `reads_onnx` exports the
    graph of an ONNX file too. `untimed` says why there are no times where `profile` gives none, and what to do.
    """

    folder: ClassVar[str] = "temper.runtimes"
    package: ClassVar[str]
    extra: ClassVar[str] = ""
    integers: ClassVar["IntegerScheme | None"] = None
    compiles: ClassVar[bool] = False
    on_request: ClassVar[bool] = False
    native: ClassVar[bool] = False
    needs_torch: ClassVar[bool] = False
    reads_onnx: ClassVar[bool] = False
    untimed: ClassVar[str] = "the runtime keeps no times of its operators"

    @abstractmethod
    def export(self, graph: Graph, folder: Path) -> None:
        """Write the files of the artifact's model into the folder, which exists and is empty."""

    @abstractmethod
    def load(self, folder: Path, schema: Schema, threads: int) -> Runner:
        """Load what `export` wrote, pinned to so many threads. Needs no torch unless it `needs_torch`."""

    @abstractmethod
    def executed(self, folder: Path, schema: Schema) -> Mapping[str, int]:
        """How many operators the loaded model executes in each precision, by the runtime's own account."""

    def profile(
        self, folder: Path, schema: Schema, threads: int, inputs: Sequence[tuple[Array, ...]]
    ) -> tuple[Kernel, ...]:
        """Seconds a call of each kernel, in order of execution, by the runtime's own clock; empty if it keeps none.

        The model is run once with each of the inputs, which are many enough for the first calls not to count.
        """
        return ()

    @abstractmethod
    def script(self, schema: Schema, threads: int) -> str:
        """The lines of `run.py` that load the model and call it, without temper; the first one is the import.

        Before them stand `from pathlib import Path`, `import numpy`, `HERE`, the artifact's folder as a path, and
        `inputs`, the NumPy arrays by the schema's names and in its order. The lines must leave the flat outputs, NumPy
        arrays in the schema's order, in a sequence called `outputs`. Names of inputs are keys, never variables: any
        name may occur.
        """

    @property
    def arithmetic(self) -> str:
        """The float type that its knobs ask products to be computed in; it is tried only where that is fast."""
        return "float32"

    @property
    def full_precision(self) -> bool:
        """Whether a float graph is executed in float32 throughout."""
        return self.arithmetic == "float32"

    @classmethod
    def require_to_export(cls) -> None:
        """Raise MissingExtra unless artifacts can be made here, which may take more than loading them does."""
        cls.require()

    @classmethod
    def require(cls) -> None:
        """Raise MissingExtra, with the command that adds it, unless the package can be imported."""
        if importlib.util.find_spec(cls.package) is None:
            wanted = f"temper-ml[{cls.extra}]" if cls.extra else cls.package
            raise MissingExtra(
                f"runtime {cls.name} needs the package {cls.package!r}, which is not installed. "
                f"Add it with: pip install '{wanted}'"
            )


@dataclass(frozen=True, kw_only=True)
class IntegerScheme:
    """Which quantizers a runtime executes fastest as integers.

    `symmetric_matmul`: matrix products want signed activations with zero point 0, convolutions unsigned ones;
    otherwise everything is unsigned. `integer_bias`: biases must be int32, with the product of the input's and the
    weight's scale. `dynamic`: what shares a scale when the inputs of a linear layer are quantized at run time: the
    whole tensor, with a zero point, or groups of neighbours in a row, symmetrically; None if the runtime does not.
    `blocks`: it keeps weights of 4 or 8 bits with a scale a block, and quantizes activations in the same blocks.
    `fuses_activations`: every activation behind a convolution becomes part of it, rather than only those that clamp.
    `fuses_sums`: a convolution adds what its output is summed with before it rounds, once; no quantizer stands between.
    `signed_with`: with these features of the processor, convolutions read signed values with zero point 0 faster than
    unsigned ones with another.
    """

    symmetric_matmul: bool
    integer_bias: bool
    dynamic: Literal["tensor", "rows"] | None = None
    blocks: bool = False
    fuses_activations: bool = False
    fuses_sums: bool = False
    signed_with: tuple[str, ...] = ()
