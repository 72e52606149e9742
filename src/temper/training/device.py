"""The device that a graph is trained on, and is on for as long as that takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from temper.core.graph import Graph


@contextmanager
def on(graph: Graph, device: str) -> Iterator[None]:
    """Have the graph on the device while the context lasts, in place: its tensors, and what its operators make anew.

    Parameters and buffers that are added meanwhile come back with the others. On a graphics processor the fastest
    algorithms are looked for, since every step has the same shapes, among those that keep all bits of a float32.
    """
    cudnn = torch.backends.cudnn
    searched, shortened = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32 = True, False
    try:
        _move(graph, device)
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = searched, shortened
        _move(graph, "cpu")


def moved(tensors: tuple[Tensor, ...], device: str) -> tuple[Tensor, ...]:
    """The tensors on the device; those that are there already, themselves."""
    return tuple(each.to(device, non_blocking=True) for each in tensors)


def _move(graph: Graph, device: str) -> None:
    graph.module.to(device)
    # The graphs inside (of torch.cond, of autocast regions) make tensors of their own.
    for module in [each for each in graph.module.modules() if isinstance(each, GraphModule)]:
        for node in module.graph.nodes:
            node.args, node.kwargs = _named(node, torch.device(device))
        module.recompile()


def _named(node: Node, device: torch.device) -> tuple[Any, Any]:
    """The node's arguments with this device wherever they name one."""

    def other(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    return map_aggregate(node.args, other), map_aggregate(node.kwargs, other)
