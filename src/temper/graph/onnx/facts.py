"""Facts about an ONNX file, computed from its nodes each time they are asked. All are false of a torch program."""

from collections.abc import Callable, Iterable, Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from temper.core.facts import Fact
from temper.core.graph import Graph
from temper.graph.onnx.program import all_constants, constants, nodes_of, onnx_model, subgraphs

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that integer kernels are for."""
MATRIX_PRODUCTS = ("MatMul", "Gemm")
CONTROL_FLOW = ("If", "Loop", "Scan")
QUANTIZED = ("QuantizeLinear", "DynamicQuantize", "QLinear", "ConvInteger", "MatMulInteger", "QGemm", "QAttention")
"""What the names of operators that make or take integers begin with."""


def float_products(model: ModelProto) -> list[NodeProto]:
    """The products with a float weight of known value, outside of branches that are chosen while the model runs."""
    return _weighted(model.graph, PRODUCTS, {})


def float_matrix_products(model: ModelProto) -> list[NodeProto]:
    """The matrix products with a float weight of known value, and the LSTMs, also in branches: sizes may decide those.

    An LSTM's weights are often put together by other nodes, which folding does away with.
    """
    known = all_constants(model)
    return [
        node
        for node in nodes_of(model.graph)
        if node.op_type == "LSTM" or (node.op_type in MATRIX_PRODUCTS and _has_float_weight(node, known))
    ]


def is_quantized(model: ModelProto) -> bool:
    return any(node.op_type.startswith(QUANTIZED) for node in nodes_of(model.graph))


def control_flow(model: ModelProto) -> list[NodeProto]:
    """The nodes that decide, while the model runs, what is run."""
    return [node for node in nodes_of(model.graph) if node.op_type in CONTROL_FLOW]


def decided_branches(graph: GraphProto, known: Iterable[str] = ()) -> list[NodeProto]:
    """The `If` nodes of this graph whose condition does not depend on an input; `known` are constants around it."""
    settled = {*known, *constants(graph)}
    found = []
    for node in graph.node:
        if node.op_type == "If" and node.input[0] in settled:
            found.append(node)
        elif not subgraphs(node) and all(each in settled for each in node.input if each):
            settled.update(node.output)
    return found


def _weighted(graph: GraphProto, operators: tuple[str, ...], around: Mapping[str, TensorProto]) -> list[NodeProto]:
    """The nodes of these operators, in the graph and in branches that constants decide, with a float weight."""
    known = {**around, **constants(graph)}
    found = [node for node in graph.node if node.op_type in operators and _has_float_weight(node, known)]
    for node in decided_branches(graph, around):
        for branch in subgraphs(node):
            found += _weighted(branch, operators, known)
    return found


def _has_float_weight(node: NodeProto, known: Mapping[str, TensorProto]) -> bool:
    # A matrix product may have its weight on either side.
    sides = node.input[:2] if node.op_type == "MatMul" else node.input[1:2]
    return any(each in known and known[each].data_type == TensorProto.FLOAT for each in sides)


def _fact(name: str, predicate: Callable[[ModelProto], object]) -> Fact:
    def holds(graph: Graph, context: object) -> bool:
        model = onnx_model(graph)
        return model is not None and bool(predicate(model))

    return Fact(name, holds)


has_float_products = _fact("has convolutions or matrix products with float weights outside of branches", float_products)
has_float_matrix_products = _fact("has matrix products with float weights, or LSTMs", float_matrix_products)
has_decided_branch = _fact("has a branch (If) that constants decide", lambda model: decided_branches(model.graph))
has_onnx_quantizers = _fact("has quantizers in its ONNX file", is_quantized)
