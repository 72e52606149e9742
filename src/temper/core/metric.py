"""A metric: how good outputs are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from temper.core.schema import Array, Outputs

Value = TypeVar("Value", float, NDArray[np.float64])


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Scores outputs against the targets, or against what the original model answers.

    `score(outputs, reference)` returns one number an example, (n,), where `per_example` is true, a single number for
    the whole set where it is false, and either where it is None: nobody has called it yet. `outputs` nest as the
    original model's do; where examples differ in length, outputs are padded with zeros, and in the original's own
    outputs as the reference that padding is masked (`numpy.ma`). `unit` is that of the score, `1` for ratios.

    Where `pooled` is true, `score` returns (n, 2), for each example a sum of losses in nats and how many there were
    (tokens, bytes). The score of a set is exp(all losses / their number), a perplexity, of which lower is better; its
    drop is relative: 0.01 is 1 % of the original's.
    """

    name: str
    score: Callable[[Outputs, Any], Any]
    per_example: bool | None
    higher_is_better: bool = True
    against: Literal["targets", "original"] = "targets"
    unit: str = "1"
    pooled: bool = False

    @property
    def needs_targets(self) -> bool:
        return self.against == "targets"

    def orient(self, value: Value) -> Value:
        """The value signed so that higher is better; a second call undoes the first.

        A drop is the oriented original minus the oriented candidate, so that worse is positive.
        """
        return value if self.higher_is_better else -value

    def reference(self, targets: Array | None, original: Outputs | None) -> Array | Outputs | None:
        """What the outputs are compared with: the targets or the original model's outputs."""
        return targets if self.against == "targets" else original
