"""The metrics that temper knows by name, those of users, and how they are called."""

import copy
import inspect
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper.core.errors import MetricError
from temper.core.lengths import IGNORED
from temper.core.metric import Metric
from temper.core.schema import Array, Outputs
from temper.measure.agreement import agreement

Scores = NDArray[np.float64]


def resolve(metric: object) -> Metric:
    """The metric that a task names, brings or defines.

    Accepts "accuracy", "cross_entropy", "cosine", "agreement" or "perplexity"; a torchmetrics metric, which is copied
    and called with the first output (or that called `logits`) as torch tensors; a function `(outputs, targets)` on
    NumPy arrays that returns scores of shape (n,), or one number for the set, where higher is better unless it has an
    attribute `higher_is_better` that is false; or a `Metric`.

    Raises: MetricError for anything else, and for a torchmetrics metric that does not say which way is better.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in NAMED:
            raise MetricError(f"no metric is called {metric!r}; there are: {', '.join(NAMED)}, or give a function")
        return NAMED[metric]
    if inspect.isclass(metric):
        raise MetricError(f"the metric is the class {metric.__name__}; give an instance, {metric.__name__}(...)")
    if any(cls.__module__.split(".")[0] == "torchmetrics" for cls in type(metric).__mro__):
        return _torchmetric(metric)
    if not callable(metric):
        raise MetricError(
            f"the metric is an object of type {type(metric).__name__}; give one of {', '.join(NAMED)}, a torchmetrics "
            "metric, or a function (outputs, targets) -> scores"
        )
    name = getattr(metric, "__name__", type(metric).__name__)
    better = bool(getattr(metric, "higher_is_better", True))
    return Metric(name=name, score=metric, per_example=None, higher_is_better=better)


def settled(metric: Metric, outputs: Outputs, targets: Array | None, original: Outputs | None) -> Metric:
    """The metric with `per_example` known: a function that does not say is called once to see.

    Raises: MetricError as `scores` does.
    """
    if metric.per_example is not None or metric.pooled:
        return metric
    result = _result(metric, outputs, targets, original)
    if result.shape not in ((), (1,), (examples_in(outputs),)):
        raise _wrong_shape(metric, result, examples_in(outputs))
    return replace(metric, per_example=result.shape == (examples_in(outputs),))


def scores(metric: Metric, outputs: Outputs, targets: Array | None, original: Outputs | None) -> Scores:
    """The score of each example, (n,) float64, signed so that higher is better.

    Raises: MetricError if the metric fails, is a set function, or returns NaN, infinity or another length.
    """
    result = _result(metric, outputs, targets, original)
    if result.shape != (examples_in(outputs),):
        raise _wrong_shape(metric, result, examples_in(outputs))
    return metric.orient(result)


def pooled(metric: Metric, outputs: Outputs, targets: Array | None, original: Outputs | None) -> Scores:
    """Losses in nats and how many there were, (n, 2) float64.

    Raises: MetricError if the metric fails or returns anything else, or if nothing is counted at all.
    """
    result = _result(metric, outputs, targets, original)
    count = examples_in(outputs)
    if result.shape != (count, 2) or not (result[:, 1] >= 0).all() or not result[:, 1].any():
        raise MetricError(
            f"metric {metric.name!r} is pooled, so it must return losses and how many there were, shape ({count}, 2), "
            f"and not nothing; it returned an array of shape {result.shape}"
        )
    return result


def value(
    metric: Metric, outputs: Outputs, targets: Array | None, original: Outputs | None, indices: NDArray[Any]
) -> float:
    """The score of the examples at `indices` as one set, signed so that higher is better.

    Raises: MetricError if the metric fails, or returns NaN, infinity or more than one number for a set.
    """
    subset = taken(outputs, indices)
    targets = None if targets is None else targets[indices]
    original = None if original is None else taken(original, indices)
    if metric.per_example:
        return float(scores(metric, subset, targets, original).mean())
    if metric.pooled:
        losses, counts = pooled(metric, subset, targets, original).sum(axis=0)
        return metric.orient(float(np.exp(losses / counts)))
    result = _result(metric, subset, targets, original)
    if result.size != 1:
        raise _wrong_shape(metric, result, len(indices))
    return metric.orient(float(result.item()))


def primary(outputs: Outputs) -> Array:
    """The array that classification metrics read: the one called `logits`, else the first."""
    if isinstance(outputs, dict):
        return outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
    return outputs[0] if isinstance(outputs, tuple) else outputs


def class_axis(outputs: tuple[int, ...], targets: tuple[int, ...]) -> int | None:
    """Which axis of outputs of this shape holds the classes for targets of that shape, or None if none can.

    (n, classes, ...) with targets (n, ...) comes before (n, ..., classes).
    """
    if len(outputs) < 2:
        return None
    if outputs[:1] + outputs[2:] == targets:
        return 1
    return len(outputs) - 1 if outputs[:-1] == targets else None


def examples_in(outputs: Outputs) -> int:
    """The number of examples that the outputs answer."""
    return len(primary(outputs))


def taken(outputs: Outputs, indices: NDArray[Any]) -> Outputs:
    """The outputs of the examples at these positions, nested as before."""
    if isinstance(outputs, dict):
        return {name: array[indices] for name, array in outputs.items()}
    return tuple(array[indices] for array in outputs) if isinstance(outputs, tuple) else outputs[indices]


def _result(metric: Metric, outputs: Outputs, targets: Array | None, original: Outputs | None) -> Scores:
    """What the metric returns, as finite float64 of any shape."""
    reference = metric.reference(targets, original)
    if reference is None:
        raise MetricError(
            f"metric {metric.name!r} compares with the {metric.against}, and there are none; give targets, or a metric "
            'that needs none, such as "cosine"'
        )
    given = len(reference) if isinstance(reference, np.ndarray) else examples_in(reference)
    if given != examples_in(outputs):
        raise MetricError(
            f"metric {metric.name!r} was given outputs for {examples_in(outputs)} examples and {metric.against} for "
            f"{given}; the model must return one row an example"
        )
    try:
        result = _as_float64(metric.score(outputs, reference))
    except MetricError:
        raise
    except Exception as error:
        raise MetricError(
            f"metric {metric.name!r} raised {type(error).__name__}: {error}, {_place(error)}, when given "
            f"{_described(outputs)} and {metric.against} {_described(reference)}"
        ) from error
    bad = int((~np.isfinite(result)).sum())
    if bad:
        which = f"for {bad} of {result.size} examples" if result.ndim else "for the whole set"
        unfit = int((~np.isfinite(primary(outputs))).sum()) if primary(outputs).dtype.kind == "f" else 0
        reason = f"the outputs hold {unfit} such values" if unfit else "the outputs are finite, so the metric made it"
        raise MetricError(
            f"metric {metric.name!r} returned NaN or infinity {which}; {reason}. A metric must return a number for "
            "every set of examples, also where a class is absent"
        )
    return result


def _as_float64(result: Any) -> Scores:
    if hasattr(result, "detach"):
        result = result.detach().cpu().double().numpy()
    array = np.asarray(result)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"it returned {type(result).__name__}, which is no number")
    return array.astype(np.float64)


def _wrong_shape(metric: Metric, result: Scores, count: int) -> MetricError:
    returned = f"an array of shape {result.shape}" if result.ndim else "a single number"
    wanted = {
        True: f"one score an example, shape ({count},)",
        False: "a single number for the set",
        None: f"one score an example, shape ({count},), or a single number for the set",
    }[metric.per_example]
    return MetricError(f"metric {metric.name!r} returned {returned} for {count} examples; it must return {wanted}")


def _described(outputs: Outputs) -> str:
    if isinstance(outputs, dict):
        return ", ".join(f"{name}: {_described(array)}" for name, array in outputs.items())
    if isinstance(outputs, tuple):
        return ", ".join(map(_described, outputs))
    return f"{outputs.dtype}[{', '.join(map(str, outputs.shape))}]"


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"at {frame.filename}:{frame.lineno}"


def _torchmetric(metric: Any) -> Metric:
    name, better = type(metric).__name__, getattr(metric, "higher_is_better", None)
    if better is None:
        raise MetricError(
            f"metric {name} of torchmetrics does not say whether higher is better; wrap it in a function "
            "(outputs, targets) -> number with an attribute higher_is_better"
        )
    own = copy.deepcopy(metric)

    def score(outputs: Outputs, targets: Array) -> Any:
        import torch

        own.reset()
        own.update(torch.as_tensor(primary(outputs)), torch.as_tensor(targets))
        result = own.compute()
        own.reset()
        return result

    return Metric(name=name, score=score, per_example=False, higher_is_better=bool(better))


def _accuracy(outputs: Outputs, targets: Array) -> Scores:
    logits, labels, counted = _classification("accuracy", outputs, targets)
    return _mean(logits.argmax(axis=1) == labels, counted)


def _cross_entropy(outputs: Outputs, targets: Array) -> Scores:
    logits, labels, counted = _classification("cross_entropy", outputs, targets)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(shifted, np.where(counted, labels, 0)[:, None], axis=1)[:, 0]
    return _mean(np.log(np.exp(shifted).sum(axis=1)) - chosen, counted)


def _perplexity(outputs: Outputs, targets: Array) -> Scores:
    """Summed negative log-likelihood in nats, and counted tokens, of each example: (n, 2).

    One example after the other, because all logits at once would not fit into memory twice.
    """
    logits = primary(outputs)
    if logits.ndim != 3 or logits.shape[:2] != targets.shape or targets.dtype.kind not in "iu":
        raise MetricError(
            "metric 'perplexity' needs logits (n, length, vocabulary) and the numbers of the tokens that come next "
            f"(n, length), and was given outputs {_described(logits)} and targets {_described(targets)}. Shift the "
            "tokens by one in the data, and end with -100: the last one has no next"
        )
    wrong = (targets != IGNORED) & ((targets < 0) | (targets >= logits.shape[2]))
    if wrong.any():
        raise MetricError(
            f"metric 'perplexity' has a vocabulary of {logits.shape[2]}, and found the target {targets[wrong][0]}"
        )
    sums = np.zeros((len(targets), 2))
    for row, (scores, tokens) in enumerate(zip(logits, targets)):
        counted = tokens != IGNORED
        found = scores[counted].astype(np.float64)
        found -= found.max(axis=1, keepdims=True, initial=-np.inf)
        chosen = np.take_along_axis(found, tokens[counted][:, None].astype(np.int64), axis=1)[:, 0]
        sums[row] = (np.log(np.exp(found).sum(axis=1)) - chosen).sum(), counted.sum()
    return sums


def _mean(values: NDArray[Any], counted: NDArray[np.bool_]) -> Scores:
    with np.errstate(invalid="ignore"):  # an example without one counted target becomes NaN, which `scores` reports
        mean: Scores = np.where(counted, values, 0.0).sum(axis=1) / counted.sum(axis=1)
    return mean


def _classification(name: str, outputs: Outputs, targets: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Logits (n, classes, positions), labels (n, positions) and which of those count.

    A single logit z is that of two classes with logits 0 and z, so both metrics cover the binary case as it is.
    """
    logits, labels = primary(outputs), targets
    if logits.size == labels.size == len(logits) and logits.dtype.kind == "f":
        logits, labels = logits.reshape(-1, 1), labels.reshape(-1)
    elif logits.ndim == 2 and labels.shape == (len(logits), 1):
        labels = labels[:, 0]
    axis = class_axis(logits.shape, labels.shape)
    if axis is None or (labels.dtype.kind not in "biu" and not np.array_equal(labels, np.trunc(labels))):
        raise MetricError(
            f"metric {name!r} needs logits (n, classes, ...) and class numbers (n, ...), and was given outputs "
            f"{_described(logits)} and targets {_described(labels)}. Give class numbers, or a metric of your own"
        )
    logits = np.moveaxis(logits, axis, 1)
    logits = logits.reshape(*logits.shape[:2], -1)
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    counted = (labels != IGNORED) if labels.ndim > 1 else np.ones(labels.shape, dtype=bool)
    wrong = counted & ((labels < 0) | (labels >= logits.shape[1]))
    if wrong.any() or np.isnan(logits).any():
        found = f"targets from {labels.min():g} to {labels.max():g}" if wrong.any() else "outputs that are NaN"
        raise MetricError(
            f"metric {name!r} has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}, and found {found}"
        )
    flat = (len(labels), -1)
    return logits, labels.reshape(flat).astype(np.int64), counted.reshape(flat)


def _cosine(outputs: Outputs, original: Outputs) -> Scores:
    ours, theirs = _flattened(outputs), _flattened(original)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    # Where an output is all zeros there is no direction: equal outputs count as alike, others as unlike.
    alike = (ours == theirs).all(axis=1).astype(np.float64)
    cosine: Scores = np.divide((ours * theirs).sum(axis=1), norms, out=alike.copy(), where=norms != 0)
    return np.where(alike == 1, 1.0, np.clip(cosine, -1.0, 1.0))


def _flattened(outputs: Outputs) -> Scores:
    arrays = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, tuple) else (outputs,)
    # Padding is zero on both sides, so that a mask over it changes nothing.
    return np.concatenate([np.asarray(array).reshape(len(array), -1).astype(np.float64) for array in arrays], axis=1)


def _named(name: str, score: Callable[[Outputs, Any], Scores], **facts: Any) -> Metric:
    return Metric(name=name, score=score, per_example=True, **facts)


NAMED = {
    "accuracy": _named("accuracy", _accuracy),
    "cross_entropy": _named("cross_entropy", _cross_entropy, higher_is_better=False, unit="nat"),
    "cosine": _named("cosine", _cosine, against="original"),
    "agreement": _named("agreement", agreement, against="original"),
    "perplexity": Metric(name="perplexity", score=_perplexity, per_example=False, higher_is_better=False, pooled=True),
}
