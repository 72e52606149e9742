"""What the quantizers of an ONNX file do, layer by layer: the error of each tensor, and what it costs at the outputs.

Each layer is looked at in the float file that the quantized one was made of, with the layer's own grids in place.
"""

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from temper.core.explanation import Layer, Quantized
from temper.core.schema import Array
from temper.graph.onnx.layers import Product, products
from temper.graph.onnx.program import all_constants, array_of, plain_session, serialized, showing

Feed = Mapping[str, Array]
PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Scales and zero points, one of each or one for each index of `axis`: real = scale * (integer - zero point)."""

    scale: Array
    zero_point: Array
    axis: int

    def restored(self, integers: Array) -> Array:
        scale, offset = (self._along(each, integers.ndim) for each in (self.scale, self.zero_point))
        return (integers.astype(np.float32) - offset.astype(np.float32)) * scale

    def rounded(self, values: Array) -> Array:
        limits = np.iinfo(self.zero_point.dtype)
        scale, offset = (self._along(each, values.ndim) for each in (self.scale, self.zero_point))
        return self.restored(np.clip(np.rint(values / scale) + offset, limits.min, limits.max))

    def _along(self, values: Array, rank: int) -> Array:
        """Scales or zero points in the shape in which they meet a tensor of that rank."""
        shape = [1] * rank
        if values.size > 1:
            shape[self.axis] = -1
        return values.reshape(shape)


@dataclass(frozen=True, kw_only=True)
class _Rounding:
    """The quantizers of a layer: its rounded weight and the grid of that, and the grids of its input and output."""

    weight: Array | None
    weight_grid: Grid | None
    input_grid: Grid | None
    output_grid: Grid | None


def layers_of_file(
    model: ModelProto, reference: ModelProto, feeds: Sequence[Feed], limit_s: float
) -> tuple[Layer, ...]:
    """The layers of a file, quantized or not; `reference` is the float file before quantizers, of the same node names.

    What quantizers lose is measured on the first feed, one call, and on as many others as fit into the time. A layer
    that the reference has otherwise (smoothed, or prepared in another way) is listed without it.
    """
    layers = [
        (product, Layer(name=product.node, operator=product.operator, shape=product.shape, node=product.node))
        for product in products(model)
    ]
    roundings = _roundings(model, reference)
    if not roundings or not feeds:
        return tuple(layer for _, layer in layers)
    originals = {each.node: each for each in products(reference)}
    session, began = plain_session(serialized(reference)), time.monotonic()
    session.run(None, dict(feeds[0]))
    each_s = (time.monotonic() - began) * (len(roundings) + 2)
    feeds = feeds[: max(1, int(limit_s / max(each_s, 1e-9)))]
    lost = sensitivities(model, reference, feeds)
    inputs = _inputs(reference, {name: originals[name] for name in roundings}, roundings, feeds)
    weights = all_constants(reference)
    found = []
    for product, layer in layers:
        rounding, original = roundings.get(product.node), originals.get(product.node)
        if rounding is not None and original is not None:
            layer = replace(
                layer,
                sensitivity=lost[product.node],
                weight=_weight(array_of(weights[original.weight]), rounding),
                input=inputs.get(product.node),
            )
        found.append(layer)
    return tuple(found)


def sensitivities(model: ModelProto, reference: ModelProto, feeds: Sequence[Feed]) -> dict[str, float]:
    """The share of the outputs' mean square that each product's quantizers, alone, lose, by the name of its node.

    These are the quantizers of its weight, its input and its output; `reference` is the file before them. The outputs
    weigh alike. One run of the file a product, with all other quantizers left out.
    """
    originals = {each.node: each for each in products(reference)}
    exact = _outputs(reference, feeds)
    return {
        name: _lost(exact, _outputs(_alone(reference, originals[name], rounding), feeds))
        for name, rounding in _roundings(model, reference).items()
    }


def _roundings(model: ModelProto, reference: ModelProto) -> dict[str, _Rounding]:
    """The quantizers of each layer that the reference has as well, by the name of its node."""
    originals = {each.node: each for each in products(reference)}
    known, names = all_constants(model), {node.name for node in reference.graph.node}
    makers = {output: node for node in model.graph.node for output in node.output}
    nodes = {node.name: node for node in model.graph.node}
    quantized = {node.input[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    found = {}
    for product in products(model):
        original, node = originals.get(product.node), nodes[product.node]
        if original is None or (original.position, original.shape) != (product.position, product.shape):
            continue
        weight = makers.get(node.input[product.position])
        values = makers.get(node.input[1 - product.position])
        weight_grid, input_grid = _grid(weight, known), _grid(values, known)
        if weight_grid is None and input_grid is None:
            continue
        if values is not None and input_grid is not None and not _is_original(values, makers, names):
            continue
        held = known.get(weight.input[0]) if weight is not None and weight_grid is not None else None
        rounded = None if held is None or weight_grid is None else weight_grid.restored(array_of(held))
        found[product.node] = _Rounding(
            weight=rounded,
            weight_grid=weight_grid,
            input_grid=input_grid,
            output_grid=_grid(quantized.get(node.output[0]), known),
        )
    return found


def _grid(node: NodeProto | None, known: Mapping[str, TensorProto]) -> Grid | None:
    """The grid of a quantizer, or its other half, whose scales are constants; None for any other node."""
    if node is None or node.op_type not in PAIR or node.input[1] not in known:
        return None
    scale = array_of(known[node.input[1]])
    zero_point = array_of(known[node.input[2]]) if len(node.input) > 2 else np.zeros(scale.shape, np.int8)
    axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
    return Grid(scale=scale, zero_point=zero_point, axis=axis)


def _is_original(node: NodeProto, makers: Mapping[str, NodeProto], names: Set[str]) -> bool:
    """Whether what is quantized and restored here is computed by a node that the reference has, or is an input."""
    while node.op_type in PAIR:
        maker = makers.get(node.input[0])
        if maker is None:
            return True
        node = maker
    return node.name in names


def _inputs(
    reference: ModelProto, layers: Mapping[str, Product], roundings: Mapping[str, _Rounding], feeds: Sequence[Feed]
) -> dict[str, Quantized]:
    """What the input quantizer of each layer does to the values that the float file gives it."""
    nodes = {node.name: node for node in reference.graph.node}
    grids = {name: each.input_grid for name, each in roundings.items() if each.input_grid is not None}
    sources = {name: nodes[name].input[1 - layers[name].position] for name in grids}
    wanted = sorted(set(sources.values()) - set(feeds[0]))
    session = plain_session(serialized(showing(reference, wanted)))
    parts: dict[str, list[Quantized]] = {name: [] for name in grids}
    sizes: dict[str, list[int]] = {name: [] for name in grids}
    for feed in feeds:
        values = {**feed, **dict(zip(wanted, session.run(wanted, dict(feed))))}
        for name, grid in grids.items():
            before = np.asarray(values[sources[name]])
            parts[name].append(_described(before, grid.rounded(before), grid))
            sizes[name].append(before.size)
    return {name: _together(each, sizes[name]) for name, each in parts.items()}


def _alone(reference: ModelProto, product: Product, rounding: _Rounding) -> ModelProto:
    """The float file with the quantizers of one layer in it."""
    model = ModelProto()
    model.CopyFrom(reference)
    place, node = next((index, each) for index, each in enumerate(model.graph.node) if each.name == product.node)
    name = f"temper.{product.node}"
    before, after = [], []
    if rounding.weight is not None:
        model.graph.initializer.append(numpy_helper.from_array(rounding.weight, f"{name}.weight"))
        node.input[product.position] = f"{name}.weight"
    if rounding.input_grid is not None:
        source = node.input[1 - product.position]
        node.input[1 - product.position] = f"{name}.input"
        before = _quantizer(model, rounding.input_grid, source, f"{name}.input")
    if rounding.output_grid is not None:
        result, node.output[0] = node.output[0], f"{name}.output"
        after = _quantizer(model, rounding.output_grid, f"{name}.output", result)
    nodes = [*model.graph.node[:place], *before, node, *after, *model.graph.node[place + 1 :]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _quantizer(model: ModelProto, grid: Grid, source: str, result: str) -> list[NodeProto]:
    """The two nodes that round `source` to the grid; the grid itself goes into the model."""
    stored = {f"{result}.scale": grid.scale, f"{result}.zero_point": grid.zero_point}
    model.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in stored.items())
    forth, back = PAIR
    return [
        helper.make_node(forth, [source, *stored], [f"{result}.integers"]),
        helper.make_node(back, [f"{result}.integers", *stored], [result]),
    ]


def _outputs(model: ModelProto, feeds: Sequence[Feed]) -> list[tuple[Array, ...]]:
    """For each float output, what all calls give, float64."""
    session = plain_session(serialized(model))
    columns = zip(*(session.run(None, dict(feed)) for feed in feeds))
    return [tuple(each.astype(np.float64) for each in column) for column in columns if column[0].dtype.kind == "f"]


def _lost(exact: Sequence[Sequence[Array]], changed: Sequence[Sequence[Array]]) -> float:
    """The share of the float outputs' mean square that is lost; outputs weigh alike, whatever their scale."""
    shares = [
        sum(float(((a - b) ** 2).sum()) for a, b in zip(one, other)) / max(sum(float((a**2).sum()) for a in one), 1e-30)
        for one, other in zip(exact, changed)
    ]
    return float(np.mean(shares)) if shares else 0.0


def _weight(before: Array, rounding: _Rounding) -> Quantized | None:
    if rounding.weight is None or rounding.weight_grid is None:
        return None
    return _described(before, rounding.weight, rounding.weight_grid)


def _described(before: Array, after: Array, grid: Grid) -> Quantized:
    error = float(((before - after) ** 2).mean())
    return Quantized(
        original_range=(float(before.min()), float(before.max())),
        scale_factor=(float(grid.scale.min()), float(grid.scale.max())),
        quantization_error=error,
        relative_error=error / max(float((before**2).mean()), 1e-30),
        bits=_bits(grid.zero_point.dtype),
    )


def _bits(integers: np.dtype[Any]) -> int:
    digits = integers.name.removeprefix("u").removeprefix("int")
    return int(digits) if digits.isdigit() else 8 * integers.itemsize


def _together(parts: Sequence[Quantized], sizes: Sequence[int]) -> Quantized:
    """One description of all calls, each of which held so many values."""
    errors = np.array([each.quantization_error for each in parts])
    powers = errors / np.maximum([each.relative_error for each in parts], 1e-30)
    error, power = float(np.average(errors, weights=sizes)), float(np.average(powers, weights=sizes))
    lows, highs = zip(*(each.original_range for each in parts))
    return replace(
        parts[0],
        original_range=(min(lows), max(highs)),
        quantization_error=error,
        relative_error=error / max(power, 1e-30),
    )
