"""OpenVINO on the CPU: bfloat16 by default where the processor has it, integer kernels for QDQ graphs."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from temper.core.explanation import Kernel
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.runtime import IntegerScheme, Runner, Runtime
from temper.core.schema import Array, Schema

FILE = "model.onnx"
NAMES = {
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "i8": "int8",
    "u8": "int8",
    "i4": "int4",
    "u4": "int4",
}
ACTIVATION_GROUP = ["framework", "activation_group"]
"""Where the model says in which groups its linear layers quantize activations at run time, if they do."""
FACTS = ("layerType", "runtimePrecision", "originalLayersNames")
ADDITIONS = "(/WithoutBiases|/DequantizationMultiply)+.*$"
"""What stands behind a node's name after rewritings."""
PROFILES = 3
COPIED_BYTES = 1 << 16
"""Inputs up to this size are copied into the request's own tensor, which is quicker than to hand over another."""
NOT_EXECUTED = ("Input", "Output", "Const", "Reorder", "Result", "Parameter")


@dataclass(frozen=True, kw_only=True)
class OpenVino(Runtime):
    """Run the graph with OpenVINO's CPU plugin, whose default precision may be bfloat16."""

    package = "openvino"
    extra = "openvino"
    reads_onnx = True
    integers = IntegerScheme(
        symmetric_matmul=True,
        integer_bias=False,
        dynamic="rows",
        blocks=True,
        fuses_activations=True,
        fuses_sums=True,
        signed_with=("amx_int8",),
    )

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
        from temper.graph.onnx_export import export_onnx

        export_onnx(graph, folder / FILE)

    def load(self, folder: Path, schema: Schema, threads: int) -> Runner:
        if not schema.dynamic_batch or schema.dynamic_length:
            return _request(self._compiled(folder, threads))
        return _Specialized(lambda batch: _request(self._compiled(folder, threads, batch=batch)))

    def executed(self, folder: Path, schema: Schema) -> Mapping[str, int]:
        """Counts from the compiled model's own description of the kernels it chose.

        A linear layer whose weights it keeps compressed counts by their bits.
        """
        facts = _facts(self._compiled(folder, 1))
        return Counter(_precision(each) for each in facts.values() if each["layerType"] not in NOT_EXECUTED)

    def profile(
        self, folder: Path, schema: Schema, threads: int, inputs: Sequence[tuple[Array, ...]]
    ) -> tuple[Kernel, ...]:
        """Means of the counters that OpenVINO keeps on request, from the median of several compilations of the model.

        Its counters cannot be reset, so they include the first calls.
        """
        import onnx

        from temper.graph.onnx.kernels import attributed

        compilations: list[Any] = []
        batch = len(inputs[0][0]) if schema.dynamic_batch and not schema.dynamic_length else None
        for _ in range(PROFILES):
            compiled = self._compiled(folder, threads, {"PERF_COUNT": True}, batch)
            facts, request = _facts(compiled), compiled.create_infer_request()
            runner = _Request(request, len(schema.outputs))
            for arrays in inputs:
                runner.run(*arrays)
            compilations.append(request.profiling_info)
        # Nodes that compilation adds have another name each time (`Multiply_160645`): they are matched by their place.
        kernels = [
            _kernel(each[-1], median(one.real_time.total_seconds() for one in each), facts)
            for each in zip(*compilations, strict=True)
            if each[-1].status.name == "EXECUTED"
        ]
        return attributed(kernels, onnx.load_model(folder / FILE, load_external_data=False))

    def script(self, schema: Schema, threads: int) -> str:
        return f"""\
import openvino
core = openvino.Core()
model = core.read_model(HERE / "{FILE}")
options = {self._options(threads)!r}
if model.has_rt_info({ACTIVATION_GROUP}):
    options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = model.get_rt_info({ACTIVATION_GROUP}).astype(str)
# Compiled for these shapes alone, which is fastest; without this line, for all that the model takes.
model.reshape({{index: array.shape for index, array in enumerate(inputs.values())}})
compiled = core.compile_model(model, "CPU", options)
outputs = list(compiled(list(inputs.values())).values())
"""

    def _options(self, threads: int) -> dict[str, Any]:
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        # The model is timed on cores that the process is already pinned to.
        options["ENABLE_CPU_PINNING"] = False
        if self.precision == "f32":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        return options

    def _compiled(
        self, folder: Path, threads: int, more: Mapping[str, Any] | None = None, batch: int | None = None
    ) -> Any:
        """The compiled model; for that batch alone, where one is given."""
        import openvino

        core = openvino.Core()
        model = core.read_model(str(folder / FILE))
        if batch is not None:
            model.reshape({index: [batch, *each.partial_shape[1:]] for index, each in enumerate(model.inputs)})
        options = {**self._options(threads), **(more or {})}
        if model.has_rt_info(ACTIVATION_GROUP):
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = model.get_rt_info(ACTIVATION_GROUP).astype(str)
        return core.compile_model(model, "CPU", options)


def _facts(compiled: Any) -> dict[str, dict[str, str]]:
    """What the compiled model says of each of its nodes, by name."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    facts = ((node.get_friendly_name(), node.get_rt_info()) for node in nodes)
    return {name: {fact: of[fact].astype(str) for fact in FACTS if fact in of} for name, of in facts}


def _precision(facts: Mapping[str, str]) -> str:
    precision = facts.get("runtimePrecision", "")
    return NAMES.get(precision, precision)


def _kernel(counter: Any, seconds: float, facts: Mapping[str, Mapping[str, str]]) -> Kernel:
    """A kernel with the names that its facts hold: its own first, since the others include some of its inputs."""
    told = facts.get(counter.node_name, {})
    names = (counter.node_name, *told.get("originalLayersNames", "").split(","))
    return Kernel(
        name=counter.node_name,
        operator=counter.node_type,
        precision=_precision(told),
        seconds=seconds,
        covers=tuple(re.sub(ADDITIONS, "", each) for each in names),
    )


def _request(compiled: Any) -> Runner:
    ports = (*compiled.inputs, *compiled.outputs)
    request, outputs = compiled.create_infer_request(), len(compiled.outputs)
    if all(port.partial_shape.is_static for port in ports):
        return _FixedRequest(request, len(compiled.inputs), outputs)
    return _Request(request, outputs)


class _Request:
    """A request whose shapes may change from call to call."""

    def __init__(self, request: Any, outputs: int) -> None:
        self._infer = request.infer
        self._outputs = range(outputs)

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        # Without sharing, results would be copied twice; the copy here makes them the caller's.
        results = self._infer(dict(enumerate(arrays)), share_inputs=True, share_outputs=True)
        return tuple(np.array(results[index]) for index in self._outputs)


class _FixedRequest:
    """A request of fixed shapes, which fills and reads its tensors itself.

    `infer` with a dict of arrays takes 25 microseconds more, a fifth of a small network's time: it makes a tensor of
    each array, and looks every result up by its port.
    """

    def __init__(self, request: Any, inputs: int, outputs: int) -> None:
        import openvino

        tensors = [request.get_input_tensor(index) for index in range(inputs)]
        self._inputs = [tensor.data if tensor.byte_size <= COPIED_BYTES else None for tensor in tensors]
        self._outputs = [request.get_output_tensor(index).data for index in range(outputs)]
        self._infer, self._set, self._tensor = request.infer, request.set_input_tensor, openvino.Tensor
        self._shared: dict[int, Array] = {}

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        for index, (own, array) in enumerate(zip(self._inputs, arrays)):
            if own is None:
                # The request keeps no hold of the memory that it reads.
                self._shared[index] = np.require(array, requirements=("C", "W"))
                self._set(index, self._tensor(self._shared[index], shared_memory=True))
            else:
                own[...] = array
        self._infer(share_outputs=True)
        return tuple(map(np.array, self._outputs))


class _Specialized:
    """Requests of a model whose batch is dynamic: the first batch that comes gets a model compiled for it alone.

    A model of fixed shapes is up to a fifth faster on small networks. Other batches share one of dynamic shapes.
    """

    def __init__(self, request: Callable[[int | None], Runner]) -> None:
        self._request = request
        self._batch: int | None = None
        self._own: Runner
        self._others: Runner | None = None

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        batch = len(arrays[0])
        if self._batch is None:
            self._batch, self._own = batch, self._first(batch)
        if batch == self._batch:
            return self._own.run(*arrays)
        if self._others is None:
            self._others = self._request(None)
        return self._others.run(*arrays)

    def _first(self, batch: int) -> Runner:
        try:
            return self._request(batch)
        except RuntimeError:
            # Its passes over fixed shapes fail on some models (DeBERTa, version 2026.4) that it runs at dynamic ones.
            return self._request(None)
