"""The losses that a task may name, and the one that goes without saying for a metric."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.errors import TaskError
from temper.core.lengths import IGNORED
from temper.core.schema import Schema
from temper.core.training import Loss

NAMES = ("cross_entropy", "mse")
OF_METRICS = {"accuracy": "cross_entropy", "cross_entropy": "cross_entropy", "perplexity": "cross_entropy"}


def has_loss(loss: object, metric: str) -> bool:
    """Whether there is a loss: one that the task brings, or the one that belongs to its metric."""
    return loss is not None or metric in OF_METRICS


def resolve(loss: object, metric: str, schema: Schema) -> Loss:
    """From flat outputs and targets to a mean, by the loss that a task names or brings, else by that of its metric.

    Accepts "cross_entropy", on logits (n, classes, ...) or (n, ..., classes) and class numbers (n, ...) of which -100
    does not count, or probabilities in the shape of the logits; "mse"; or a function `(outputs, targets)` on tensors,
    outputs nested as the model's own.

    Raises: TaskError for anything else, and where there is neither a loss nor one of the metric's; by calling it, where
    outputs and targets do not go together, or the function returns no scalar.
    """
    if loss is None:
        loss = OF_METRICS.get(metric)
    place = _primary(schema)
    if loss == "cross_entropy":
        # Where the length is as large as the number of classes, shapes alone do not tell which axis is which.
        last = schema.outputs[place].length_axis == 1
        return lambda outputs, targets: _cross_entropy(outputs[place], targets, classes_last=last)
    if loss == "mse":
        return lambda outputs, targets: _mse(outputs[place], targets)
    if isinstance(loss, str) or not callable(loss):
        raise TaskError(
            f"the task's loss is {loss!r}, and metric {metric!r} has none of its own: give one of {', '.join(NAMES)}, "
            "or a function (outputs, targets) -> scalar tensor"
        )
    given: Callable[[Any, Tensor], Tensor] = loss

    def own(outputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        if isinstance(given, nn.Module):
            given.to(targets.device)  # with what it holds, such as the weights of classes
        value = given(schema.nested(outputs), targets)  # type: ignore[arg-type] # of tensors
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TaskError(f"the task's loss returned {found}: it must return one number, a mean over the examples")
        return value

    return own


def _primary(schema: Schema) -> int:
    """Which output classification reads: the one called `logits`, else the first."""
    names = [spec.name for spec in schema.outputs]
    return names.index("logits") if schema.nesting == "dict" and "logits" in names else 0


def _cross_entropy(logits: Tensor, targets: Tensor, *, classes_last: bool) -> Tensor:
    if logits.numel() == targets.numel() == len(logits):
        # One logit is that of two classes with logits 0 and itself.
        return F.binary_cross_entropy_with_logits(logits.flatten(), targets.flatten().to(logits.dtype))
    if logits.dim() == 2 and targets.dim() == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.shape == logits.shape and targets.is_floating_point():
        scores, shares = logits, targets.to(logits.dtype)
        if classes_last:
            scores, shares = scores.movedim(-1, 1), shares.movedim(-1, 1)
        return F.cross_entropy(scores, shares)
    classes_first = logits.shape[:1] + logits.shape[2:] == targets.shape and not classes_last
    scores = logits if classes_first else logits.movedim(-1, 1)
    if scores.shape[:1] + scores.shape[2:] != targets.shape:
        raise TaskError(f"cross_entropy: logits {_shape(logits)} do not go with targets {_shape(targets)}")
    total = F.cross_entropy(scores, targets.long(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    if [size for size in outputs.shape if size != 1] != [size for size in targets.shape if size != 1]:
        raise TaskError(f"mse: outputs {_shape(outputs)} do not go with targets {_shape(targets)}")
    return F.mse_loss(outputs, targets.to(outputs.dtype).reshape(outputs.shape))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
