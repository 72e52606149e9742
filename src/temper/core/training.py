"""What training techniques are given: batches, a loss, and how long they may take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    Batch = tuple[tuple[Tensor, ...], Tensor]
    """Inputs in the order of the graph's, each (examples, ...), and targets (examples, ...)."""
    Loss = Callable[[tuple[Tensor, ...], Tensor], Tensor]
    """From the graph's flat outputs and the targets to a scalar, the mean over the examples."""
else:
    Batch = Loss = Any


class Batches(Protocol):
    """The batches of one epoch, in order."""

    def __len__(self) -> int: ...

    def __iter__(self) -> "Iterator[Batch]": ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training part of a task, to be gone through again and again, and the selection part to look at meanwhile.

    `batches(size, epoch)` are those of one epoch, in an order of that epoch's own, all but perhaps the last of that
    size; a source that comes in batches keeps its own. `selection(size)` never changes. The graph is trained on
    `device`, to which batches are moved. Training ends at `deadline`, in seconds of `time.monotonic`. `folder` is where
    checkpoints lie, None for none; `tell` receives lines of progress.
    """

    batches: "Callable[[int, int], Batches]"
    selection: "Callable[[int], Batches]"
    loss: "Loss"
    deadline: float
    folder: Path | None
    tell: Callable[[str], None]
    device: str = "cpu"
