"""What a technique may use besides the graph."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from temper.core.schema import Array
from temper.core.target import Target
from temper.core.training import Training

if TYPE_CHECKING:
    from temper.core.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Context:
    """The runtime that the graph is meant for, the target, a seed, and the calibration inputs if there are any.

    `calibration` holds one array an input, each (examples, ...), in the order of the graph's inputs; and behind them,
    where examples differ in length, those lengths (examples,). `core.lengths.batches` cuts and groups them. `training`
    is there if the task has a training part and a loss that this process can make again.
    """

    runtime: "Runtime"
    target: Target
    seed: int
    calibration: tuple[Array, ...] | None = None
    training: Training | None = None
