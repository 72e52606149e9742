"""The graph of a task: captured on its own examples, at the batch and the lengths that it will meet."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from temper.core.data import Examples
from temper.core.errors import CaptureError, UsageError
from temper.core.goal import Conditions
from temper.core.graph import Graph
from temper.core.lengths import Positions, probing
from temper.graph.capture import Call, capture
from temper.pipeline.materialize import call_of

EXAMPLE_BATCH = 2
"""The least batch that `torch.export` does not take for a constant."""


def captured(module: nn.Module, examples: Examples, names: Sequence[str], conditions: Conditions) -> Graph:
    """The graph with a dynamic batch; if the model forbids that, with the batch that it is measured at.

    Where the examples differ in length, so may the graph's inputs; it follows the module at the shortest and the
    longest of the examples, and at the length that is to be measured.

    Raises: CaptureError; UsageError if the model takes one batch only, and another is to be measured.
    """

    def at(batch: int) -> Graph:
        call, *others = _calls(examples, batch, conditions.length)
        return capture(module, call, names=names, axes=examples.axes, others=others)

    try:
        graph = at(EXAMPLE_BATCH)
    except CaptureError as first:
        try:
            return at(conditions.batch)
        except CaptureError:
            raise first from None
    if graph.schema.batch in (None, conditions.batch):
        return graph
    try:
        return at(conditions.batch)
    except CaptureError as error:
        raise UsageError(
            f"{type(module).__name__} takes a batch of {graph.schema.batch} only, and a batch of {conditions.batch} is "
            f"to be measured: ask for it with --batch {graph.schema.batch}"
        ) from error


def check_length(examples: Examples, length: int | None) -> None:
    """Raise UsageError if a length is to be measured, and the examples have none of their own."""
    if examples.lengths is None and length is not None:
        raise UsageError(
            f"a length of {length} is to be measured, and all examples of this task have one shape, "
            f"{'; '.join(map(str, examples.layout))}: leave the length out, or give examples of their natural lengths"
        )


def _calls(examples: Examples, batch: int, length: int | None) -> list[Call]:
    """The call to capture with, at a middling length, and those to check it with."""
    if examples.lengths is None:
        return [call_of(examples, np.arange(batch) % len(examples))]
    order = np.argsort(examples.lengths, kind="stable")
    rows = np.resize(order, batch)
    return [_call_at(examples, rows, each) for each in probing(examples.lengths, length)]


def _call_at(examples: Examples, rows: Positions, length: int) -> Call:
    """A call with these examples, each cut or repeated to that length."""
    inputs = examples.at_length(rows, length)
    resized = replace(examples, inputs=inputs, targets=None, lengths=np.full(len(rows), length))
    return call_of(resized, np.arange(len(rows)))
