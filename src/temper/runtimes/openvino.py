"""OpenVINO on the CPU: bfloat16 by default where the processor has it, integer kernels for QDQ graphs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.runtime import IntegerScheme, Runner, Runtime
from temper.core.schema import Array, Schema

FILE = "model.onnx"
INTEGERS = ("i8", "u8")
NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
NOT_EXECUTED = ("Input", "Output", "Const", "Reorder", "Result", "Parameter")


@dataclass(frozen=True, kw_only=True)
class OpenVino(Runtime):
    """Run the graph with OpenVINO's CPU plugin, whose default precision may be bfloat16."""

    package = "openvino"
    extra = "openvino"
    integers = IntegerScheme(symmetric_matmul=True, integer_bias=False)

    precision: str = knob(
        "default",
        among=("default", "f32"),
        help="what float operators are executed in: the plugin's choice, or float32",
    )

    @property
    def full_precision(self) -> bool:
        return self.precision == "f32"

    def export(self, graph: Graph, folder: Path) -> None:
        """Write `model.onnx`, which OpenVINO reads itself. Raises: TrialError if ONNX cannot express the graph."""
        from temper.graph.onnx import export_onnx

        export_onnx(graph, folder / FILE)

    def load(self, folder: Path, schema: Schema, threads: int) -> Runner:
        return _Request(self._compiled(folder, threads).create_infer_request(), len(schema.outputs))

    def executed(self, folder: Path, schema: Schema) -> Mapping[str, int]:
        """Counts from the compiled model's own description of the kernels it chose."""
        counts: Counter[str] = Counter()
        for node in self._compiled(folder, 1).get_runtime_model().get_ordered_ops():
            facts = node.get_rt_info()
            precision = facts["runtimePrecision"].astype(str) if "runtimePrecision" in facts else ""
            if facts["layerType"].astype(str) not in NOT_EXECUTED:
                counts["int8" if precision in INTEGERS else NAMES.get(precision, precision)] += 1
        return counts

    def script(self, schema: Schema, threads: int) -> str:
        return f"""\
import openvino
options = {self._options(threads)!r}
model = openvino.Core().compile_model(HERE / "{FILE}", "CPU", options)
outputs = list(model(list(inputs.values())).values())
"""

    def _options(self, threads: int) -> dict[str, Any]:
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        # The model is timed on cores that the process is already pinned to.
        options["ENABLE_CPU_PINNING"] = False
        if self.precision == "f32":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        return options

    def _compiled(self, folder: Path, threads: int) -> Any:
        import openvino

        return openvino.Core().compile_model(str(folder / FILE), "CPU", self._options(threads))


class _Request:
    def __init__(self, request: Any, outputs: int) -> None:
        self._infer = request.infer
        self._outputs = range(outputs)

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        # Without sharing, results would be copied twice; the copy here makes them the caller's.
        results = self._infer(dict(enumerate(arrays)), share_inputs=True, share_outputs=True)
        return tuple(np.array(results[index]) for index in self._outputs)
