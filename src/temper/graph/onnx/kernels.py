"""Which nodes of an ONNX file the kernels of a runtime compute, by their names."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from onnx import ModelProto, NodeProto

from temper.core.explanation import Kernel
from temper.graph.onnx.layers import products

PRODUCTS = re.compile(r"Conv(?!ert)|Deconvolution|Gemm|MatMul|FullyConnected")
"""What runtimes call the kernels of products."""


def attributed(kernels: Sequence[Kernel], model: ModelProto) -> tuple[Kernel, ...]:
    """The kernels with the nodes that they compute; `covers` of those given holds names of nodes or of values.

    Names that the file does not have are left out, and a node belongs to one kernel: to the one that has it for its
    first name, or else to the first that lists it. The kernel of a product may be named after what was merged into it:
    a bias, an activation, a quantizer. It then computes the product that leads there and is no other kernel's.
    """
    nodes = {node.output[0]: node for node in model.graph.node}
    makers = {output: node for node in model.graph.node for output in node.output}
    known = {name: node.output[0] for name, node in makers.items()}
    known |= {node.name: node.output[0] for node in model.graph.node if node.name}
    owners: dict[str, int] = {}
    for part in (slice(1), slice(1, None)):
        for index, kernel in enumerate(kernels):
            for name in kernel.covers[part]:
                if name in known:
                    owners.setdefault(known[name], index)
    wanted = {known[product.node] for product in products(model)}
    for index, kernel in enumerate(kernels):
        own = [value for value, owner in owners.items() if owner == index]
        if PRODUCTS.search(kernel.operator) and not wanted.intersection(own):
            product = _merged([nodes[value] for value in own], makers, owners, wanted)
            if product is not None:
                owners[product] = index
    covers: list[list[str]] = [[] for _ in kernels]
    for value, node in nodes.items():
        if value in owners:
            covers[owners[value]].append(node.name)
    return tuple(replace(kernel, covers=tuple(names)) for kernel, names in zip(kernels, covers))


def _merged(
    starts: Sequence[NodeProto], makers: Mapping[str, NodeProto], owners: Mapping[str, int], products: Set[str]
) -> str | None:
    """The value of the nearest product upstream, if no kernel owns it or what lies in between."""
    reached, seen = list(starts), set(owners)
    for node in reached:
        for name in node.input:
            maker = makers.get(name)
            if maker is None or maker.output[0] in seen:
                continue
            if maker.output[0] in products:
                return str(maker.output[0])
            seen.add(maker.output[0])
            reached.append(maker)
    return None
