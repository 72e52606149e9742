"""How images lie in memory while a graph is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.fx import GraphModule

from temper.core.graph import Graph

aten = torch.ops.aten


@contextmanager
def channels_last(graph: Graph) -> Iterator[bool]:
    """Have kernels of images (out, in, height, width) lie channels last while the context lasts, in place.

    Convolutions then compute faster, and what they return lies so too: `view`, which asks for memory in the order of
    the axes, is written as `reshape` meanwhile. A graph that reads memory by its strides is left alone; the context
    says whether it was not.
    """
    module = graph.module
    nodes = [node for each in module.modules() if isinstance(each, GraphModule) for node in each.graph.nodes]
    if any(node.target is aten.as_strided.default for node in nodes):
        yield False
        return
    views = [node for node in nodes if node.target is aten.view.default]
    for node in views:
        node.target = aten.reshape.default
    _store(module, torch.channels_last)
    try:
        yield True
    finally:
        for node in views:
            node.target = aten.view.default
        _store(module, torch.contiguous_format)


def _store(module: GraphModule, form: torch.memory_format) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=form)
    for each in module.modules():
        if isinstance(each, GraphModule):
            each.recompile()
