"""Running statistics of batch norms, taken anew."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.graph.surgery import tensor_of

MOMENTUM = 6
"""Which argument of `batch_norm` is the momentum."""


def re_estimate(graph: Graph, norms: Sequence[Node], batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Set the running mean and variance of the norms, which are in training mode, to their means over the batches.

    The batches are on the graph's device.

    Reference: Nagel et al. 2022 (arXiv 2203.11086), section 5.1: with few bits, running statistics lag behind weights
    that hop between integers.

    Raises: TrialError if they are not finite.
    """
    momenta = [norm.args[MOMENTUM] for norm in norms]
    with torch.no_grad():
        for count, inputs in enumerate(batches, start=1):
            for norm in norms:
                norm.update_arg(MOMENTUM, 1 / count)
            graph.module.recompile()
            graph.module(*inputs)
    for norm, momentum in zip(norms, momenta):
        norm.update_arg(MOMENTUM, momentum)
    graph.module.recompile()
    for norm in norms:
        statistics = (tensor_of(graph.module, each) for each in norm.args[3:5])
        if not all(each is not None and bool(each.isfinite().all()) for each in statistics):
            raise TrialError(f"the statistics of the batch norm {norm.name!r} are not finite: training diverged")
