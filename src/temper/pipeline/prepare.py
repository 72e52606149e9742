"""From a task to everything that the search needs: parts of the data, the graph, the target, all in the run folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from temper.core import catalog
from temper.core.data import Parts
from temper.core.errors import UsageError
from temper.core.goal import Goal
from temper.core.graph import Graph
from temper.core.metric import Metric
from temper.core.runtime import Runtime
from temper.core.schema import Array
from temper.core.target import Target
from temper.core.task import OnnxFile, Task
from temper.graph.capture import own_copy
from temper.graph.cost import cost
from temper.graph.onnx.adoption import adopt
from temper.graph.onnx.program import all_constants, nodes_of, onnx_model, size_of
from temper.graph.storage import save
from temper.hardware.detect import this_host
from temper.measure.metrics import resolve
from temper.pipeline.captured import captured, check_length
from temper.pipeline.fingerprint import fingerprint
from temper.pipeline.materialize import input_names, materialize
from temper.pipeline.run_folder import RunFolder
from temper.pipeline.training import TrainingPart, why_not


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A task that was checked, split and captured."""

    name: str
    model: str
    source: str | None
    module: nn.Module
    metric: Metric
    parts: Parts
    graph: Graph
    target: Target
    fingerprint: dict[str, str]
    goal: Goal
    training: TrainingPart | None = None

    @property
    def calibration(self) -> tuple[Array, ...] | None:
        return None if self.parts.calibration is None else self.parts.calibration.stored

    def to_json(self) -> dict[str, Any]:
        """What the report says of the task."""
        parts = ("calibration", "selection", "proof")
        sizes = {part: len(examples) for part in parts if (examples := getattr(self.parts, part)) is not None}
        return {
            "name": self.name,
            "source": self.source,
            "model": self.model,
            "metric": self.metric.name,
            "examples": sizes,
            "notes": list(self.parts.notes),
            "schema": self.graph.schema.to_json(),
            **self._figures(),
        }

    def _figures(self) -> dict[str, Any]:
        """Parameters, operators, FLOPs a call (None where they are not known) and bytes of weights."""
        model = onnx_model(self.graph)
        if model is not None:
            sizes = [size_of(tensor) for tensor in all_constants(model).values()]
            return {
                "parameters": sum(count for count, _ in sizes),
                "operators": sum(node.op_type != "Constant" for node in nodes_of(model.graph)),
                "flops": None,
                "weight_bytes": sum(size for _, size in sizes),
            }
        conditions = self.goal.conditions
        costs = cost(self.graph, self.graph.schema.batch or conditions.batch, conditions.length)
        return {
            "parameters": sum(parameter.numel() for parameter in self.module.parameters()),
            "operators": sum(node.op == "call_function" for node in self.graph.module.graph.nodes),
            "flops": costs.flops,
            "weight_bytes": costs.weight_bytes,
        }


def prepare(
    task: Task,
    goal: Goal,
    seed: int,
    folder: RunFolder,
    tell: Callable[[str], None],
    runtimes: Sequence[str] | None = None,
) -> Prepared:
    """Check and split the data, capture the model, and store both for the worker processes.

    `runtimes` are those that may be used, in place of every one that is installed.

    Raises: TaskError and its kin, naming what is wrong with the task; UsageError or MissingExtra for the runtimes.
    """
    target = this_host(runtimes)
    own = None if isinstance(task.model, OnnxFile) else own_copy(task.module())
    metric = resolve(task.metric)
    parts = materialize(task.data, seed=seed, needs_targets=metric.needs_targets)
    for note in parts.notes:
        tell(f"data: {note}")
    check_length(parts.selection, goal.conditions.length)
    if isinstance(task.model, OnnxFile):
        module, graph = adopt(task.model, parts.selection, goal.conditions)
        target = _reading_onnx(target)
        parts = _renamed(parts, [spec.name for spec in graph.schema.inputs])
        model, told = task.model.path.name, "an ONNX file"
    else:
        assert own is not None
        names = input_names(own, parts.proof)
        module, graph = own, captured(own, parts.selection, names, goal.conditions)
        model, told = type(own).__name__, f"captured as {len(graph.module.graph.nodes)} nodes"
    save(graph, folder.fresh(folder.graph))
    for part in ("calibration", "selection", "proof"):
        examples = getattr(parts, part)
        if examples is not None:
            folder.store(part, "input", examples.stored)
    training = _training(task, parts, metric, graph, tell)
    name = task.name or model
    tell(f"model: {name}, {told}; {graph.schema.inputs[0]}")
    return Prepared(
        name=name,
        model=model,
        source=task.source,
        module=module,
        metric=metric,
        parts=parts,
        graph=graph,
        target=target,
        fingerprint=fingerprint(module, graph, parts, metric, task.loss, goal, seed),
        goal=goal,
        training=training,
    )


def _training(
    task: Task, parts: Parts, metric: Metric, graph: Graph, tell: Callable[[str], None]
) -> TrainingPart | None:
    """The training part for techniques that train, unless there is none or something that they need is missing."""
    if parts.training is None or isinstance(task.model, OnnxFile):
        return None
    reason = why_not(task, metric.name)
    if reason is not None:
        tell(f"data: the training part is not used: {reason}")
        return None
    return TrainingPart(
        task=task,
        kept=parts.kept,
        selection=parts.selection.stored,
        targets=parts.selection.targets,
        schema=graph.schema,
        metric=metric.name,
    )


def _reading_onnx(target: Target) -> Target:
    """The target with those of its runtimes that can run an ONNX file."""
    reading = tuple(each for each in target.runtimes if catalog.get(Runtime, each).reads_onnx)
    if not reading:
        raise UsageError(f"none of {', '.join(target.runtimes)} runs ONNX files: name onnxruntime or openvino")
    return replace(target, runtimes=reading)


def _renamed(parts: Parts, names: Sequence[str]) -> Parts:
    """The parts with their inputs under the names, and in the order, of an ONNX file's own."""
    calibration = None if parts.calibration is None else parts.calibration.ordered(names)
    selection, proof = parts.selection.ordered(names), parts.proof.ordered(names)
    return replace(parts, calibration=calibration, selection=selection, proof=proof)
