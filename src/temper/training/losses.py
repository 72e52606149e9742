"""The losses that a task may name, and the one that goes without saying for a metric."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from temper.core.errors import TaskError
from temper.core.lengths import IGNORED
from temper.core.schema import Schema
from temper.core.training import Loss

OF_METRICS = {"accuracy": "cross_entropy", "cross_entropy": "cross_entropy", "perplexity": "cross_entropy"}


def has_loss(loss: object, metric: str) -> bool:
    """Whether there is a loss: one that the task brings, or the one that belongs to its metric."""
    return loss is not None or metric in OF_METRICS


def resolve(loss: object, metric: str, schema: Schema) -> Loss:
    """From flat outputs and targets to a mean, by the loss that a task names or brings, else by that of its metric.

    Accepts "cross_entropy", on logits (n, classes, ...) or (n, ..., classes) and class numbers (n, ...) of which -100
    does not count; "mse"; or a function `(outputs, targets)` on tensors, outputs nested as the model's own.

    Raises: TaskError for anything else, and where there is neither a loss nor one of the metric's.
    """
    if loss is None:
        loss = OF_METRICS.get(metric)
    if isinstance(loss, str) and loss in NAMED:
        named, place = NAMED[loss], _primary(schema)
        return lambda outputs, targets: named(outputs[place], targets)
    if isinstance(loss, str) or not callable(loss):
        raise TaskError(
            f"the task's loss is {loss!r}, and metric {metric!r} has none of its own: give one of {', '.join(NAMED)}, "
            "or a function (outputs, targets) -> scalar tensor"
        )
    given: Callable[[Any, Tensor], Tensor] = loss
    return lambda outputs, targets: given(schema.nested(outputs), targets)  # type: ignore[arg-type] # of tensors


def _primary(schema: Schema) -> int:
    """Which output classification reads: the one called `logits`, else the first."""
    names = [spec.name for spec in schema.outputs]
    return names.index("logits") if schema.nesting == "dict" and "logits" in names else 0


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.numel() == targets.numel() == len(logits):
        # One logit is that of two classes with logits 0 and itself.
        return F.binary_cross_entropy_with_logits(logits.flatten(), targets.flatten().to(logits.dtype))
    if logits.dim() == 2 and targets.dim() == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    classes_first = logits.shape[:1] + logits.shape[2:] == targets.shape
    scores = logits if classes_first else logits.movedim(-1, 1)
    return F.cross_entropy(scores, targets.long(), ignore_index=IGNORED)


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets.to(outputs.dtype).reshape(outputs.shape))


NAMED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": _cross_entropy, "mse": _mse}
