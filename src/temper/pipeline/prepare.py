"""From a task to everything that the search needs: parts of the data, the graph, the target, all in the run folder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from temper.core.data import Parts
from temper.core.goal import Goal
from temper.core.graph import Graph
from temper.core.metric import Metric
from temper.core.schema import Array
from temper.core.target import Target
from temper.core.task import Task
from temper.graph.capture import own_copy
from temper.graph.cost import cost
from temper.graph.storage import save
from temper.hardware.detect import this_host
from temper.measure.metrics import resolve
from temper.pipeline.captured import captured
from temper.pipeline.fingerprint import fingerprint
from temper.pipeline.materialize import input_names, materialize
from temper.pipeline.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A task that was checked, split and captured."""

    name: str
    source: str | None
    module: nn.Module
    metric: Metric
    parts: Parts
    graph: Graph
    target: Target
    fingerprint: dict[str, str]
    goal: Goal

    @property
    def calibration(self) -> tuple[Array, ...] | None:
        return None if self.parts.calibration is None else self.parts.calibration.stored

    def to_json(self) -> dict[str, Any]:
        """What the report says of the task."""
        conditions = self.goal.conditions
        costs = cost(self.graph, self.graph.schema.batch or conditions.batch, conditions.length)
        parts = ("calibration", "selection", "proof")
        sizes = {part: len(examples) for part in parts if (examples := getattr(self.parts, part)) is not None}
        return {
            "name": self.name,
            "source": self.source,
            "model": type(self.module).__name__,
            "metric": self.metric.name,
            "examples": sizes,
            "notes": list(self.parts.notes),
            "schema": self.graph.schema.to_json(),
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
    module = own_copy(task.module())
    metric = resolve(task.metric)
    parts = materialize(task.data, seed=seed, needs_targets=metric.needs_targets)
    for note in parts.notes:
        tell(f"data: {note}")
    names = input_names(module, parts.proof)
    graph = captured(module, parts.selection, names, goal.conditions)
    save(graph, folder.fresh(folder.graph))
    for part in ("calibration", "selection", "proof"):
        examples = getattr(parts, part)
        if examples is not None:
            folder.store(part, "input", examples.stored)
    name = task.name or type(module).__name__
    tell(f"model: {name}, captured as {len(graph.module.graph.nodes)} nodes; {graph.schema.inputs[0]}")
    return Prepared(
        name=name,
        source=task.source,
        module=module,
        metric=metric,
        parts=parts,
        graph=graph,
        target=target,
        fingerprint=fingerprint(module, graph, parts, metric, goal, seed),
        goal=goal,
    )
