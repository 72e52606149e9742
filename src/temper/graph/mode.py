"""Training and evaluation mode of a captured graph, whose flags are arguments baked into its nodes."""

from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

from temper.core.graph import Graph

aten = torch.ops.aten


def set_training(graph: Graph, training: bool) -> None:
    """Rewrite the flags of batch norm, dropout and attention in place.

    A batch norm without running statistics normalizes by its batch in both modes, so it stays as it was captured; so do
    those in the graphs inside (of torch.cond, of autocast regions), whose statistics nobody takes anew.
    """
    for module in [each for each in graph.module.modules() if isinstance(each, GraphModule)]:
        for node in module.graph.nodes:
            rewrite = _REWRITES.get(node.target) if node.op == "call_function" else None
            if rewrite is not None and (module is graph.module or rewrite is not set_norm_training):
                rewrite(node, training)
        module.recompile()


def norms_in_training(graph: Graph) -> list[Node]:
    """The batch norms with running statistics that normalize by their batch as it is now."""
    norms = [node for node in graph.module.graph.nodes if node.target is aten.batch_norm.default]
    return [node for node in norms if node.args[3] is not None and node.args[5]]


def set_norm_training(norm: Node, training: bool) -> None:
    """Rewrite the flag of one batch norm in place; the module is the caller's to recompile."""
    if norm.args[3] is not None:
        norm.update_arg(5, training)


def _dropout(node: Node, training: bool) -> None:
    node.update_arg(2, training)


def _attention(node: Node, training: bool) -> None:
    """`scaled_dot_product_attention` has no flag: its probability is kept aside while it is zero."""
    probability = node.meta.setdefault("dropout_p", _argument(node, 4, "dropout_p", 0.0))
    if not probability:
        return
    value = probability if training else 0.0
    if len(node.args) > 4:
        node.update_arg(4, value)
    else:
        node.update_kwarg("dropout_p", value)


def _randomized_slope(node: Node, training: bool) -> None:
    """`rrelu` (input, lower, upper, training, ...); what export left to the defaults is spelled out."""
    defaults = (None, 1.0 / 8, 1.0 / 3)
    node.args = (*node.args[:3], *defaults[len(node.args[:3]) :], training, *node.args[4:])


def _recurrent(node: Node, training: bool) -> None:
    """LSTM, GRU and RNN: (input, hx, params, has_biases, num_layers, dropout, train, ...)."""
    node.update_arg(6, training)


def _argument(node: Node, position: int, name: str, default: float) -> float:
    value = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
    assert isinstance(value, int | float)
    return value


_REWRITES: dict[object, Callable[[Node, bool], None]] = {
    aten.batch_norm.default: set_norm_training,
    aten.instance_norm.default: set_norm_training,
    aten.dropout.default: _dropout,
    aten.dropout_.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.feature_dropout_.default: _dropout,
    aten.alpha_dropout.default: _dropout,
    aten.alpha_dropout_.default: _dropout,
    aten.feature_alpha_dropout.default: _dropout,
    aten.feature_alpha_dropout_.default: _dropout,
    aten.rrelu.default: _randomized_slope,
    aten.rrelu_.default: _randomized_slope,
    aten.lstm.input: _recurrent,
    aten.gru.input: _recurrent,
    aten.rnn_tanh.input: _recurrent,
    aten.rnn_relu.input: _recurrent,
    aten.scaled_dot_product_attention.default: _attention,
}
