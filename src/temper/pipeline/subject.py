"""One part of the data together with what the original model answers on it: what candidates are compared on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from temper.core.data import Examples
from temper.core.errors import TaskError, TrialError
from temper.core.lengths import Positions, gathered, groups, masked
from temper.core.metric import Metric
from temper.core.schema import Array, Outputs, Schema
from temper.graph.capture import flat_outputs
from temper.hardware.cores import working_threads
from temper.measure.metrics import settled, value
from temper.measure.quality import Quality, compare
from temper.pipeline.materialize import call_of, check_targets
from temper.pipeline.workshop import PREDICTION_BATCH

CLASSIFICATION = ("accuracy", "cross_entropy", "perplexity")
"""The metrics whose targets are class numbers."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The examples of one part and the original model's outputs for them, in float32 and eager mode."""

    part: str
    examples: Examples
    original: tuple[Array, ...]
    metric: Metric
    schema: Schema
    seed: int

    def compare(self, outputs: Sequence[Array], max_drop: float) -> Quality:
        """The candidate's quality on this part.

        Raises: TrialError if the outputs have other shapes than the original's, or are not finite where those are.
        """
        if len(outputs) != len(self.original):
            raise TrialError(f"{len(outputs)} outputs came back, and the original has {len(self.original)}")
        for spec, output, expected in zip(self.schema.outputs, outputs, self.original):
            if output.shape != expected.shape:
                raise TrialError(f"output {spec.name!r} has shape {output.shape}, and the original's {expected.shape}")
            broken = int((~np.isfinite(output) & np.isfinite(expected)).sum()) if output.dtype.kind == "f" else 0
            if broken:
                raise TrialError(
                    f"output {spec.name!r} holds {broken} NaN or infinite values that the original has not"
                )
        nested = self.schema.nested
        return compare(
            self.metric,
            nested(self.original),
            nested(outputs),
            self.examples.targets,
            max_drop=max_drop,
            seed=self.seed,
        )


def subject(module: nn.Module, examples: Examples, part: str, metric: Metric, schema: Schema, seed: int) -> Subject:
    """Run the user's own module, in float32 and evaluation mode, over the examples.

    Raises: DataError if a label does not fit the outputs; MetricError if the metric cannot score the original.
    """
    original = original_outputs(module, examples, schema.batch, mask=metric.against == "original")
    nested: Outputs = schema.nested(original)
    if metric.name in CLASSIFICATION and examples.targets is not None:
        check_targets(examples.targets, nested, part)
    metric = settled(metric, nested, examples.targets, nested)
    value(metric, nested, examples.targets, nested, np.arange(len(examples)))  # it must be able to score the original
    return Subject(part=part, examples=examples, original=original, metric=metric, schema=schema, seed=seed)


def original_outputs(
    module: nn.Module, examples: Examples, fixed_batch: int | None, *, mask: bool
) -> tuple[Array, ...]:
    """The flat outputs (examples, ...) of the module, in batches of one length; padded with zeros where they differ.

    With `mask` that padding is masked, for metrics that compare with these outputs.

    Raises: TaskError if forward fails on some examples, for an output without the batch as its first axis, or for one
    of a dtype that NumPy lacks.
    """
    batch = fixed_batch or PREDICTION_BATCH
    positions, chunks = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(working_threads())
    try:
        for rows in groups(examples.lengths, len(examples), batch):
            outputs = _called(module, examples, np.resize(rows, fixed_batch or len(rows)))
            chunks.append([output[: len(rows)] for output in outputs])
            positions.append(rows)
    finally:
        torch.set_num_threads(threads)
    return (masked if mask else gathered)(positions, chunks)


def _called(module: nn.Module, examples: Examples, rows: Positions) -> list[Array]:
    """The flat outputs for one batch. Raises: TaskError naming the examples if forward fails."""
    positional, keyword = call_of(examples, rows)
    try:
        with torch.inference_mode():
            outputs = module.eval()(*positional, **keyword)
    except Exception as error:
        raise TaskError(
            f"{type(module).__name__} fails on {_named(examples, rows)}: {type(error).__name__}: {error}. Every "
            "example must be one that the model takes"
        ) from error
    tensors, _, names = flat_outputs(outputs, type(module).__name__)
    return [_array(tensor, name, len(rows)) for tensor, name in zip(tensors, names)]


def _named(examples: Examples, rows: Positions) -> str:
    """The examples of one batch, in words."""
    if examples.lengths is None:
        return f"the examples {rows[0]} to {rows[-1]}"
    shown = ", ".join(map(str, np.unique(rows)[:5]))
    return f"examples of length {examples.lengths[rows[0]]} (number {shown}{', ...' if len(rows) > 5 else ''})"


def _array(tensor: torch.Tensor, name: str, batch: int) -> Array:
    if tensor.dim() == 0 or len(tensor) != batch:
        raise TaskError(
            f"the model's output {name!r} has shape {tuple(tensor.shape)} for a batch of {batch}: the first axis of "
            "every output must count the examples. Return only such tensors from forward"
        )
    if tensor.dtype is torch.bfloat16:
        raise TaskError(f"the model's output {name!r} is bfloat16, which NumPy lacks: return it with .float()")
    return tensor.numpy()
