"""Batch norms in training: which batches they can use, and their running statistics, taken anew."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.core.training import Batch
from temper.graph.mode import norms_in_training, set_norm_training, set_training
from temper.graph.surgery import tensor_of

MOMENTUM = 6
"""Which argument of `batch_norm` is the momentum."""


def usable(graph: Graph, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches without those of a single example, where a batch norm sees one value of a channel in each.

    One value has no variance: the running one would not be finite any more.
    """
    single = any(_values_of_a_channel(norm) == 1 for norm in norms_in_training(graph))
    return (batch for batch in batches if not single or len(batch[0][0]) > 1)


def _values_of_a_channel(norm: Node) -> int | None:
    """How many values of a channel each example has, or None if that is not fixed."""
    value = norm.meta.get("val")
    if not isinstance(value, Tensor) or not all(isinstance(size, int) for size in value.shape[2:]):
        return None
    return math.prod(value.shape[2:])


def re_estimate(graph: Graph, norms: Sequence[Node], batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Set the running mean and variance of the norms to their means over the batches, with all else as it is executed.

    The batches are on the graph's device. The graph is in evaluation mode afterwards.

    Reference: Nagel et al. 2022 (arXiv 2203.11086), section 5.1: with few bits, running statistics lag behind weights
    that hop between integers.

    Raises: TrialError if they are not finite, or if there is no batch.
    """
    set_training(graph, False)
    momenta = [norm.args[MOMENTUM] for norm in norms]
    for norm in norms:
        set_norm_training(norm, True)
    count = 0
    with torch.no_grad():
        for count, inputs in enumerate(batches, start=1):
            for norm in norms:
                norm.update_arg(MOMENTUM, 1 / count)
            graph.module.recompile()
            graph.module(*inputs)
    for norm, momentum in zip(norms, momenta):
        norm.update_arg(MOMENTUM, momentum)
    set_training(graph, False)
    if not count:
        raise TrialError(
            "no batch is left to take the statistics of batch norms from: give a training part that can be gone "
            "through again"
        )
    for norm in norms:
        statistics = (tensor_of(graph.module, each) for each in norm.args[3:5])
        if not all(each is not None and bool(each.isfinite().all()) for each in statistics):
            raise TrialError(f"the statistics of the batch norm {norm.name!r} are not finite: training diverged")
