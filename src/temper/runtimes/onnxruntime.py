"""ONNX Runtime on the CPU: portable, quick to load, integer kernels for QDQ graphs."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from temper.core.explanation import Kernel
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.runtime import IntegerScheme, Runner, Runtime
from temper.core.schema import Array, Schema

if TYPE_CHECKING:
    import onnx
    import onnxruntime

FILE = "model.onnx"
LEVELS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED"}
KERNEL = "_kernel_time"
ADDITIONS = r"^fused |(_token_\d+|/duplicated|_nchwc|_quant|/\w+Fusion/?)+$"
"""What stands around a node's name after rewritings: `fused node_Gemm_8`, `node_conv2d_3_token_11`."""
DISABLED, SLOWER = "optimization.disable_specified_optimizers", "SkipLayerNormFusion"
"""A rewriting whose kernel is slower than what it replaces: a sum and a layer norm take a third of both in one."""
INTEGER_OPERATORS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize", "QAttention")
BLOCK_OPERATORS = ("MatMulNBits", "GatherBlockQuantized")


@dataclass(frozen=True, kw_only=True)
class OnnxRuntime(Runtime):
    """Run the graph as ONNX with float32 and integer kernels."""

    package = "onnxruntime"
    reads_onnx = True
    integers = IntegerScheme(symmetric_matmul=False, integer_bias=True, dynamic="tensor", blocks=True)

    optimization: str = knob("all", among=("all", "extended"), help="how far the graph is rewritten at load time")

    def export(self, graph: Graph, folder: Path) -> None:
        """Write `model.onnx`. Raises: TrialError if ONNX cannot express the graph."""
        from temper.graph.onnx_export import export_onnx

        export_onnx(graph, folder / FILE)

    def load(self, folder: Path, schema: Schema, threads: int) -> Runner:
        return _Session(self._session(folder, threads), schema)

    def executed(self, folder: Path, schema: Schema) -> Mapping[str, int]:
        """Counts from the graph that the session really runs, which ONNX Runtime writes out on request."""
        import tempfile

        import onnx

        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "optimized.onnx"
            self._session(folder, 1, optimized=file)
            nodes = onnx.load_model(file, load_external_data=False).graph.node
        return Counter(_bits(node) or _precision(node.op_type) for node in nodes)

    def profile(
        self, folder: Path, schema: Schema, threads: int, inputs: Sequence[tuple[Array, ...]]
    ) -> tuple[Kernel, ...]:
        """Medians from the trace that ONNX Runtime writes on request."""
        import json
        import tempfile

        import onnx

        from temper.graph.onnx.kernels import attributed

        with tempfile.TemporaryDirectory() as scratch:
            session = self._session(folder, threads, trace=Path(scratch) / "trace")
            runner = _Session(session, schema)
            for arrays in inputs:
                runner.run(*arrays)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        timed: dict[str, list[dict[str, Any]]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
                timed.setdefault(event["name"], []).append(event)
        model = onnx.load_model(folder / FILE, load_external_data=False)
        blocks = {node.name: bits for node in model.graph.node if (bits := _bits(node))}
        return attributed([_kernel(name, each, blocks) for name, each in timed.items()], model)

    def script(self, schema: Schema, threads: int) -> str:
        level = f"onnxruntime.GraphOptimizationLevel.{LEVELS[self.optimization]}"
        return f"""\
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
options.graph_optimization_level = {level}
options.add_session_config_entry("{DISABLED}", "{SLOWER}")
session = onnxruntime.InferenceSession(HERE / "{FILE}", options, providers=["CPUExecutionProvider"])
outputs = session.run(None, inputs)
"""

    def _session(
        self, folder: Path, threads: int, optimized: Path | None = None, trace: Path | None = None
    ) -> "onnxruntime.InferenceSession":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[self.optimization])
        options.add_session_config_entry(DISABLED, SLOWER)
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace)
        return onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])


def _bits(node: "onnx.NodeProto") -> str:
    """The precision of an operator that reads weights in blocks, or nothing for any other."""
    if node.op_type not in BLOCK_OPERATORS:
        return ""
    return next((f"int{each.i}" for each in node.attribute if each.name == "bits"), "int4")


def _precision(operator: str) -> str:
    return "int8" if operator.startswith(INTEGER_OPERATORS) else "float32"


def _kernel(name: str, events: list[dict[str, Any]], blocks: Mapping[str, str]) -> Kernel:
    """ONNX Runtime calls a node that it made of others after one of them, or after its value, with additions."""
    node = name.removesuffix(KERNEL)
    operator = events[0]["args"]["op_name"]
    original = re.sub(ADDITIONS, "", node)
    seconds = median(event["dur"] for event in events) * 1e-6
    precision = blocks.get(node) or _precision(operator)
    return Kernel(name=node, operator=operator, precision=precision, seconds=seconds, covers=(original,))


class _Session:
    def __init__(self, session: Any, schema: Schema) -> None:
        self._run = session.run
        self._names = [spec.name for spec in schema.inputs]

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        return tuple(self._run(None, dict(zip(self._names, arrays))))
