"""Store linear layers and embeddings in 8 or 4 bits, with a scale for each short stretch of a row: no calibration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.facts import has_block_runtime
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.technique import Technique
from temper.graph.facts import (
    float_embeddings,
    float_linears,
    has_foldable_batch_norm,
    has_quantizers,
    is_mostly_linear,
)
from temper.graph.surgery import clean
from temper.techniques.quantization._layers import quantize_inputs, quantize_weight, weight_of
from temper.techniques.quantization._ranges import weight_scales

CHUNK = 2048
"""Groups at a time, so that the search for their scales stays in the cache."""


@dataclass(frozen=True, kw_only=True)
class WeightOnlyQuantization(Technique):
    """Weights in few bits, for models that wait for their weights; the runtime rounds activations as it reads them."""

    needs = (has_block_runtime, is_mostly_linear, ~has_quantizers, ~has_foldable_batch_norm)
    leaves = (has_quantizers,)
    reference = "Dettmers and Zettlemoyer 2022, arXiv 2212.09720; Frantar et al. 2022, arXiv 2210.17323"

    bits: int = knob(8, among=(8, 4), unit="bit", help="bits of a weight")
    group_size: int = knob(128, among=(32, 64, 128), help="neighbouring weights of a row that share a scale")

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with quantizers. Raises: NoEffect if no layer has rows of whole groups."""
        linears = [layer for layer in float_linears(graph) if self._divides(graph, layer.args[1])]
        embeddings = [layer for layer in float_embeddings(graph) if self._divides(graph, layer.args[0])]
        if not linears and not embeddings:
            raise NoEffect(
                f"{self.name}: no linear layer or embedding has rows of a multiple of group_size={self.group_size}"
            )
        for layer, position in (*((each, 1) for each in linears), *((each, 0) for each in embeddings)):
            weight = weight_of(graph, layer.args[position])
            quantize_weight(graph, layer, position, self._scales(weight), self._integers)
        quantize_inputs(graph, linears, self.group_size)
        clean(graph.module)
        return graph

    @property
    def _integers(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def _divides(self, graph: Graph, node: object) -> bool:
        return weight_of(graph, node).shape[1] % self.group_size == 0

    def _scales(self, weight: Tensor) -> Tensor:
        """One scale a group (rows, groups): of least squared error where steps are coarse enough for it to matter."""
        method = "mse" if self.bits < 8 else "minmax"
        parts = torch.split(weight.reshape(-1, self.group_size), CHUNK)
        return torch.cat([weight_scales(part, self._integers, method) for part in parts]).reshape(len(weight), -1)
