"""Bit for bit: what a graph holds and computes, taken down so that it can be compared later."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from temper.core.graph import Graph
from temper.core.schema import Array


def outputs_of(graph: Graph, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """The graph's flat outputs for flat inputs."""
    with torch.no_grad():
        return tuple(output.numpy().copy() for output in graph(*map(torch.tensor, inputs)))


def contents(graph: Graph, inputs: Sequence[Array]) -> Mapping[str, object]:
    """The graph's nodes, tensors, schema and outputs for these inputs, each under a name, as comparable values."""
    tensors = {f"tensor {name}": _exact(value.numpy(force=True)) for name, value in graph.module.state_dict().items()}
    outputs = outputs_of(graph, inputs)
    named = {f"output {spec.name}": _exact(value) for spec, value in zip(graph.schema.outputs, outputs, strict=True)}
    nodes = "\n".join(node.format_node() or "" for node in graph.module.graph.nodes)
    return {"nodes": nodes, "schema": graph.schema, **tensors, **named}


def differences(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    """The names under which two contents differ, or an empty string."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def same(one: Sequence[Array], other: Sequence[Array]) -> bool:
    """Whether arrays agree in dtype, shape and every bit."""
    return list(map(_exact, one)) == list(map(_exact, other))


def _exact(array: Array) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()
