"""Facts about a graph, computed from its nodes each time they are asked."""

import torch
from torch.fx import Node

from temper.core.facts import Fact
from temper.core.graph import Graph
from temper.graph.onnx.facts import has_onnx_quantizers
from temper.graph.patterns.constants import foldable_constants
from temper.graph.quantizers import is_quantizer
from temper.graph.surgery import tensor_of, users_of_tensor

aten = torch.ops.aten

CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
)
LINEAR = (aten.linear.default,)
EMBEDDINGS = (aten.embedding.default,)
MATRIX_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default)


def is_call(node: object, targets: tuple[object, ...]) -> bool:
    """Whether the node calls one of these operators."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def weighted_layers(graph: Graph) -> list[Node]:
    """The convolutions and linear layers whose weight is a parameter, quantized or not, in graph order."""
    layers = (node for node in graph.module.graph.nodes if is_call(node, (*CONVOLUTIONS, *LINEAR)))
    return [layer for layer in layers if _weight(graph, layer)]


def float_layers(graph: Graph) -> list[Node]:
    """The weighted layers that read their weight without a quantizer."""
    return [node for node in weighted_layers(graph) if not is_quantizer(node.args[1])]


def float_linears(graph: Graph) -> list[Node]:
    """The linear layers that read a float matrix of their own."""
    return [node for node in float_layers(graph) if is_call(node, LINEAR)]


def float_embeddings(graph: Graph) -> list[Node]:
    """The look-ups in a table that is a float parameter."""
    return [
        node
        for node in graph.module.graph.nodes
        if is_call(node, EMBEDDINGS) and tensor_of(graph.module, node.args[0]) is not None
    ]


def foldable_batch_norms(graph: Graph) -> list[tuple[Node, Node]]:
    """Pairs (layer, batch norm in evaluation mode that alone reads it), whose weights nothing else uses.

    A batch norm works on dimension 1, which for a linear layer is the features only if its output is a matrix.
    """
    return [(layer, norm) for layer, norm in _normalized_layers(graph) if _owns_float_weight(graph, layer)]


def _normalized_layers(graph: Graph) -> list[tuple[Node, Node]]:
    """Pairs (layer, batch norm in evaluation mode that alone reads it)."""
    pairs = []
    for node in graph.module.graph.nodes:
        if not is_call(node, (aten.batch_norm.default,)) or node.args[5] or node.args[3] is None:
            continue
        layer = node.args[0]
        matches = is_call(layer, CONVOLUTIONS) or (is_call(layer, LINEAR) and _is_matrix(layer))
        if matches and len(layer.users) == 1:
            pairs.append((layer, node))
    return pairs


def _can_fold_batch_norms(graph: Graph) -> bool:
    """Whether a batch norm can be folded, or could be once its layer's weight is a constant that is stored."""
    if foldable_batch_norms(graph):
        return True
    computed = [
        layer.args[1] for layer, _ in _normalized_layers(graph) if tensor_of(graph.module, layer.args[1]) is None
    ]
    return any(len(node.users) == 1 for node in foldable_constants(graph) if node in computed) if computed else False


def _weight(graph: Graph, node: Node) -> bool:
    weight = node.args[1]
    if is_quantizer(weight):
        assert isinstance(weight, Node)
        weight = weight.args[0]
    return tensor_of(graph.module, weight) is not None


def _is_matrix(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 2


def _owns_float_weight(graph: Graph, layer: Node) -> bool:
    weight = layer.args[1]
    if tensor_of(graph.module, weight) is None:
        return False
    assert isinstance(weight, Node)
    return len(users_of_tensor(graph.module, str(weight.target))) == 1


def _is_mostly_linear(graph: Graph) -> bool:
    """Whether linear layers and embeddings hold at least half of the parameters."""
    tables = {layer.args[1] for layer in float_linears(graph)} | {layer.args[0] for layer in float_embeddings(graph)}
    targets = {str(node.target): tensor_of(graph.module, node) for node in tables if isinstance(node, Node)}
    held = sum(each.numel() for each in targets.values() if each is not None)
    return held > 0 and 2 * held >= sum(each.numel() for each in graph.module.parameters())


has_float_linears = Fact("has linear layers with float weights", lambda graph, context: bool(float_linears(graph)))
is_mostly_linear = Fact(
    "has at least half of its parameters in float linear layers and embeddings",
    lambda graph, context: _is_mostly_linear(graph),
)
has_float_layers = Fact("has layers with float weights", lambda graph, context: bool(float_layers(graph)))
has_quantizers = Fact(
    "has quantizers",
    lambda graph, context: (
        any(map(is_quantizer, graph.module.graph.nodes)) or has_onnx_quantizers.holds(graph, context)
    ),
)
has_foldable_batch_norm = Fact("has a batch norm to fold", lambda graph, context: _can_fold_batch_norms(graph))
