"""Ranges of an ONNX file's activations by the methods that torch programs have, for ONNX Runtime's quantizer.

Its own calibrators other than min-max are of no use here: they keep every activation of every call in memory (or, in
steps, histograms that grow with the ratio of the ranges of two calls), their entropy has as many bins as integers to
begin with, and so nothing to choose from, and their distribution is for 8-bit floats.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from temper.core.schema import Array
from temper.graph.onnx.program import all_constants, plain_session, serialized, showing
from temper.techniques.quantization._ranges import counted, joint_range

BOUNDED = ("Relu", "Clip")
"""Operators that ONNX Runtime's quantizer puts into the range of what they read, when nothing else reads that."""


def activation_ranges(
    model: ModelProto,
    feeds: Sequence[dict[str, Array]],
    kept: Collection[str],
    method: str,
    percentile: float,
    *,
    symmetric: bool,
) -> dict[str, tuple[float, float]]:
    """The range of each float activation that a node other than those `kept` in float reads or makes.

    The file is run twice over the calls, and the activations of one call are in memory at a time.
    """
    wanted = _activations(model, kept)
    session = plain_session(serialized(showing(model, sorted(wanted - set(feeds[0])))))

    def observe(names: set[str], see: Callable[[str, Tensor], None]) -> None:
        computed = sorted(names - set(feeds[0]))
        for feed in feeds:
            values = {**feed, **dict(zip(computed, session.run(computed, feed)))} if computed else feed
            for name in names:
                see(name, torch.from_numpy(values[name]))

    seen = counted(observe, wanted, method)
    ranges = {name: joint_range([each], method, percentile, symmetric=symmetric) for name, each in seen.items()}
    readers = [name for node in model.graph.node for name in node.input]
    for node in model.graph.node:
        if node.op_type in BOUNDED and node.output[0] in ranges and readers.count(node.input[0]) == 1:
            ranges[node.input[0]] = ranges[node.output[0]]
    return ranges


def _activations(model: ModelProto, kept: Collection[str]) -> set[str]:
    described = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    floats = {each.name for each in described if each.type.tensor_type.elem_type == TensorProto.FLOAT}
    nodes = [node for node in model.graph.node if node.name not in kept]
    touched = {name for node in nodes for name in (*node.input, *node.output)}
    return (touched & floats) - set(all_constants(model))
