"""Correct the biases: what rounding adds to a layer's output on average is taken off again.

Rounding errors of weights and activations do not cancel over the inputs: each output channel is shifted a little, and
the shifts add up from layer to layer. The mean of each channel's error on calibration inputs goes into the bias.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.facts import has_calibration
from temper.core.graph import Graph
from temper.core.technique import Technique
from temper.graph.facts import CONVOLUTIONS, LINEAR, has_quantizers, is_call, weighted_layers
from temper.graph.quantizers import is_dynamic_quantizer, is_quantizer
from temper.graph.surgery import add_tensor, clean, tensor_of
from temper.techniques.quantization._importance import live_rows
from temper.techniques.quantization._insertion import quantize_bias
from temper.techniques.quantization._neighbours import owns
from temper.techniques.quantization._ranges import batches

EXAMPLES = 64
CORRECTED = "_corrected"
"""How the name of a corrected bias ends: the float model that it was compared with is gone, so it is the last one."""
NEGLIGIBLE = 1e-3
"""Mean error of a channel, in standard deviations of its layer's output, that is not worth correcting."""


@dataclass(frozen=True, kw_only=True)
class BiasCorrection(Technique):
    """Add to each quantized layer's bias the mean error of its output, layer by layer in the order of the graph."""

    needs = (has_calibration, has_quantizers)
    auxiliary = True
    reference = "Nagel et al. 2019, arXiv 1906.04721, section 4.2 and appendix D"

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with corrected biases. Raises: NoEffect if no layer's mean output was shifted."""
        assert context.calibration is not None
        if any(str(bias.target).endswith(CORRECTED) for layer in weighted_layers(graph) if (bias := _bias(layer))):
            raise NoEffect(f"{self.name}: the biases are corrected already, and the float model's own ones are gone")
        scheme = context.runtime.integers
        inputs = list(batches(graph, tuple(each[:EXAMPLES] for each in context.calibration)))
        layers = {layer for layer in weighted_layers(graph) if _can_be_corrected(graph, layer)}
        live = live_rows(graph, inputs, [layer for layer in layers if is_call(layer, LINEAR)])
        exact: dict[Node, tuple[Tensor, float]] = {}
        corrections: dict[Node, Tensor] = {}

        def remember(layer: Node, values: list[Tensor]) -> None:
            exact[layer] = _mean(layer, values, live), float(values[0].std())

        def correct(layer: Node, values: list[Tensor]) -> None:
            mean, deviation = exact[layer]
            shift = mean - _mean(layer, values, live)
            if float(shift.abs().max()) > NEGLIGIBLE * deviation:
                corrections[layer] = shift
                for value in values:
                    # The layers behind see what they will see once the bias is corrected.
                    value += shift.reshape(-1, *[1] * (value.dim() - 2)) if is_call(layer, CONVOLUTIONS) else shift

        with torch.no_grad():
            _run(graph, inputs, layers, remember, rounded=False)
            _run(graph, inputs, layers, correct, rounded=True)
        if not corrections:
            raise NoEffect(f"{self.name} found no quantized layer whose mean output is shifted")
        for layer, shift in corrections.items():
            _add_to_bias(graph, layer, shift, integer=scheme is not None and scheme.integer_bias)
        clean(graph.module)
        return graph


def _run(
    graph: Graph,
    inputs: Sequence[tuple[Tensor, ...]],
    layers: set[Node],
    see: Callable[[Node, list[Tensor]], None],
    *,
    rounded: bool,
) -> None:
    """Run all batches through each node before the next one, so that a layer's outputs are seen all at once.

    Without `rounded`, quantizers hand on what they read.
    """
    module, nodes = graph.module, list(graph.module.graph.nodes)
    last_use = {source: node for node in nodes for source in node.all_input_nodes}
    values: dict[Node, list[Any]] = {}
    given = iter(zip(*inputs))
    for node in nodes[:-1]:
        if node.op == "placeholder":
            values[node] = list(next(given))
        elif node.op == "get_attr":
            values[node] = [operator.attrgetter(str(node.target))(module)] * len(inputs)
        elif not rounded and (is_quantizer(node) or is_dynamic_quantizer(node)):
            values[node] = values[node.args[0]]
        else:
            values[node] = [_call(node, values, batch) for batch in range(len(inputs))]
        if node in layers:
            see(node, values[node])
        for source in node.all_input_nodes:
            if last_use[source] is node:
                del values[source]


def _call(node: Node, values: dict[Node, list[Any]], batch: int) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), lambda each: values[each][batch])
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _mean(layer: Node, values: Sequence[Tensor], live: Mapping[Node, Sequence[Tensor]]) -> Tensor:
    """The mean of each output channel (channels,) over all batches, of linear layers over the live vectors alone."""
    if layer in live:
        rows = [value[where].double() for value, where in zip(values, live[layer], strict=True)]
    else:
        rows = [value.movedim(1, -1).flatten(0, -2).double() for value in values]
    total = torch.stack([each.sum(0) for each in rows]).sum(0)
    return (total / sum(map(len, rows))).float()


def _bias(layer: Node) -> Node | None:
    """The node of the stored bias, behind its quantizer if it has one."""
    bias = layer.args[2] if len(layer.args) > 2 else None
    if is_quantizer(bias):
        assert isinstance(bias, Node)
        bias = bias.args[0]
    return bias if isinstance(bias, Node) else None


def _can_be_corrected(graph: Graph, layer: Node) -> bool:
    """Whether the layer is quantized, and its bias yet to be made, or its own."""
    if not is_quantizer(layer.args[1]):
        return False
    bias = _bias(layer)
    return bias is None or owns(graph, bias)


def _add_to_bias(graph: Graph, layer: Node, shift: Tensor, *, integer: bool) -> None:
    module, old, weight = graph.module, _bias(layer), layer.args[1]
    assert isinstance(weight, Node)
    stored = tensor_of(module, old)
    name = f"{weight.args[0]}_bias" if old is None else str(old.target)
    new = add_tensor(module, name + CORRECTED, shift if stored is None else stored.detach() + shift, trainable=True)
    if old is not None:
        old.replace_all_uses_with(new)
        return
    layer.args = (*layer.args[:2], new, *layer.args[3:])
    if integer:
        quantize_bias(graph, layer)
