"""Agreement with the original model: how much of what its outputs vary by, over the examples, is reproduced.

For each output, 1 - |y - y'|^2 / mean |y - mean(y)|^2: the coefficient of determination, whose mean over the examples
is 1 for equal outputs and 0 for answering always the original's mean. A cosine would hide the same errors wherever an
output hardly varies beside its mean (boxes, probabilities of a frequent class) or is a single number. Outputs weigh
alike, whatever their size and scale; one that holds integers, or is the same for every example, counts the examples
for which it is equal. Padding, where examples differ in length, is masked in the original's outputs and counts in no
mean: zeros beside values of a large mean would look like variation.

Reference: Wright 1921, Correlation and causation (the coefficient of determination).
"""

import numpy as np

from temper.core.errors import MetricError
from temper.core.schema import Array, Outputs

CONSTANT = 1e-12
"""The share of an output's own magnitude under which its variation is rounding."""


def agreement(outputs: Outputs, original: Outputs) -> Array:
    """One score an example, (n,) float64: 1 where all outputs are the original's, less the more they differ."""
    shares: Array = np.mean(
        [_share(ours, theirs) for ours, theirs in zip(_flat(outputs), _flat(original), strict=True)], axis=0
    )
    return shares


def _share(ours: Array, theirs: Array) -> Array:
    if ours.shape != theirs.shape:
        raise MetricError(f"agreement: outputs of shape {ours.shape} cannot be compared with {theirs.shape}")
    ours, theirs = (each.reshape(len(each), -1) for each in (ours, theirs))
    equal = np.ma.filled((ours == theirs).all(axis=1), True).astype(np.float64)
    if theirs.dtype.kind != "f":
        return equal
    theirs = theirs.astype(np.float64)
    variation = ((theirs - theirs.mean(axis=0)) ** 2).sum(axis=1).mean()
    if variation <= CONSTANT * (theirs**2).sum(axis=1).mean():
        return equal
    share: Array = 1.0 - np.ma.filled(((ours - theirs) ** 2).sum(axis=1), 0.0) / variation
    return share


def _flat(outputs: Outputs) -> tuple[Array, ...]:
    if isinstance(outputs, dict):
        return tuple(outputs.values())
    return outputs if isinstance(outputs, tuple) else (outputs,)
