"""What the quantizers of ONNX files share: calibration inputs, and where quantizing ends."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

from onnx import ModelProto, NodeProto
from onnxruntime.quantization import CalibrationDataReader

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.graph import Graph
from temper.core.schema import Array
from temper.core.target import Target
from temper.graph.onnx.facts import PRODUCTS, is_quantized
from temper.graph.onnx.program import feeds_of, reads, with_model

CALIBRATION_MOST = 256
"""Ranges settle with fewer examples than there may be, and one is run at a time."""


def calibration_feeds(graph: Graph, context: Context) -> list[dict[str, Array]]:
    """The calibration inputs, one call each, by the names of the file's inputs."""
    assert context.calibration is not None
    return feeds_of(graph.schema, context.calibration, CALIBRATION_MOST)


def behind_products(model: ModelProto) -> list[str]:
    """The names of the nodes that no product stands behind.

    What follows the last products (decoding of boxes, softmax, concatenation of outputs) feeds no integer kernel, so
    that quantizing it would only round the outputs.
    """
    leading: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type in PRODUCTS or leading.intersection(node.output):
            leading.update(reads(node))
    return [
        node.name for node in model.graph.node if node.op_type not in PRODUCTS and not leading.intersection(node.output)
    ]


def finished(name: str, graph: Graph, model: ModelProto) -> Graph:
    """The graph with the quantized model. Raises: NoEffect if nothing in it is quantized."""
    if not is_quantized(model):
        raise NoEffect(f"{name}: the quantizer found nothing in the file, outside of branches, that it can quantize")
    return with_model(graph, model)


def has_convolution(nodes: Sequence[NodeProto]) -> bool:
    return any(node.op_type in ("Conv", "ConvTranspose") for node in nodes)


def saturates(target: Target) -> bool:
    """Whether an x86 processor adds pairs of 8-bit products in 16 bits, so that weights may only have 7 bits."""
    exact = ("vnni", "int8", "i8mm", "asimddp")
    return not any(word in feature for feature in target.features for word in exact)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep what quantizers print about their progress out of the log."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the calibration inputs to ONNX Runtime's quantizer."""

    def __init__(self, feeds: Sequence[dict[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)
