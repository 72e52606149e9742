"""Weights of few bits, packed in an ONNX file: stored in as many bits as their integers need, unpacked when loaded.

The bits of a group of weights lie in planes: the lowest bits of all, eight to a byte, then the next ones. Standard
operators at the head of the file take the bytes apart and add up the planes. They read constants alone, so that
runtimes compute them once, before they choose kernels, which see 8-bit weights as ever. Which operators a runtime
computes beforehand was tried out: OpenVINO refuses shifts, and leaves conversions from bytes but the first alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MOST = 1 << 22
"""Weights that are unpacked together: for a moment each of their bits takes four bytes."""
LEAST = 256
"""Smaller tensors gain less than the operators take that unpack them."""
PREFIX = "bits."
"""What the names of everything that stands at the head of the file begin with."""
SHARED = {
    f"{PREFIX}powers": 1 << np.arange(8, dtype=np.int32),
    f"{PREFIX}two": np.array(2, np.int32),
    f"{PREFIX}last": np.array([-1], np.int64),
    f"{PREFIX}first": np.array([0], np.int64),
}
"""Constants that all groups use."""


def pack_weights(model: ModelProto) -> None:
    """Store the int8 weights of few bits packed, in place; those that need all 8 bits stay as they are."""
    graph = model.graph
    quantized = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    groups: dict[int, list[list[TensorProto]]] = {}
    for tensor in graph.initializer:
        count = int(np.prod(tensor.dims))
        if tensor.data_type != TensorProto.INT8 or tensor.name not in quantized or count < LEAST:
            continue
        bits = _bits(numpy_helper.to_array(tensor))
        if bits == 8:
            continue
        held = groups.setdefault(bits, [[]])
        if sum(int(np.prod(each.dims)) for each in held[-1]) + count > MOST:
            held.append([])
        held[-1].append(tensor)
    nodes: list[NodeProto] = []
    for bits, held in sorted(groups.items()):
        for number, tensors in enumerate(each for each in held if each):
            nodes += _packed(graph, tensors, bits, f"{PREFIX}{bits}.{number}")
    if nodes:
        for name, array in SHARED.items():
            _add(graph, name, array)
        rest = list(graph.node)
        del graph.node[:]
        graph.node.extend((*nodes, *rest))


def packed_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The names of the weights that the head of the file unpacks, and their shapes."""
    stored = {each.name: each for each in model.graph.initializer if each.name.startswith(PREFIX)}
    shaped = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    return {
        node.output[0]: tuple(map(int, numpy_helper.to_array(stored[shaped[node.input[0]]])))
        for node in model.graph.node
        if node.op_type == "Cast" and shaped.get(node.input[0]) in stored
    }


def _bits(values: NDArray[np.int8]) -> int:
    """The least number of bits whose two's complement holds the values; at least 2."""
    lowest, highest = int(values.min()), int(values.max())
    return next(bits for bits in range(2, 9) if -(1 << (bits - 1)) <= lowest and highest < 1 << (bits - 1))


def _packed(graph: GraphProto, tensors: Sequence[TensorProto], bits: int, name: str) -> list[NodeProto]:
    """Replace the tensors by planes of bits, and return the nodes that make them again."""
    arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
    offset = 1 << (bits - 1)
    flat = np.concatenate([array.astype(np.int32).ravel() for array in arrays]) + offset
    planes = np.stack([np.packbits(flat >> bit & 1, bitorder="little") for bit in range(bits)])
    padding = -len(flat) % 8
    sizes = [array.size for array in arrays] + ([padding] if padding else [])
    _add(graph, name, planes)
    _add(graph, f"{name}.planes", (1 << np.arange(bits, dtype=np.int32)).reshape(-1, 1, 1))
    _add(graph, f"{name}.offset", np.array(offset, np.int32))
    parts = [f"{name}.{index}" for index in range(len(sizes))]
    steps = [
        ("Cast", [name], [f"{name}.bytes"], {"to": TensorProto.INT32}),
        ("Unsqueeze", [f"{name}.bytes", f"{PREFIX}last"], [f"{name}.each"], {}),
        ("Div", [f"{name}.each", f"{PREFIX}powers"], [f"{name}.shifted"], {}),
        ("Mod", [f"{name}.shifted", f"{PREFIX}two"], [f"{name}.bits"], {}),
        ("Mul", [f"{name}.bits", f"{name}.planes"], [f"{name}.scaled"], {}),
        ("ReduceSum", [f"{name}.scaled", f"{PREFIX}first"], [f"{name}.sum"], {"keepdims": 0}),
        ("Sub", [f"{name}.sum", f"{name}.offset"], [f"{name}.signed"], {}),
        ("Reshape", [f"{name}.signed", f"{PREFIX}last"], [f"{name}.flat"], {}),
    ]
    if len(sizes) > 1:
        _add(graph, f"{name}.sizes", np.array(sizes, np.int64))
        steps.append(("Split", [f"{name}.flat", f"{name}.sizes"], parts, {"axis": 0}))
    else:
        parts = [f"{name}.flat"]
    for tensor, array, part in zip(tensors, arrays, parts):
        _add(graph, f"{part}.shape", np.array(array.shape, np.int64))
        steps.append(("Reshape", [part, f"{part}.shape"], [f"{part}.shaped"], {}))
        steps.append(("Cast", [f"{part}.shaped"], [tensor.name], {"to": TensorProto.INT8}))
        graph.initializer.remove(tensor)
    return [helper.make_node(kind, reads, makes, **more) for kind, reads, makes, more in steps]


def _add(graph: GraphProto, name: str, array: NDArray[np.generic]) -> None:
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
