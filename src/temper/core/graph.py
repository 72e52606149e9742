"""The one representation of a model: a `torch.export` program in training IR, or a call of an ONNX file."""

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from temper.core.schema import Schema

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule


ONNX = "onnx"
"""The submodule that the graph of an ONNX file calls, and that no other graph has."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A trainable graph of ATen operators whose parameters keep their original names.

    `module` takes the flat inputs of `schema` by position and returns the flat outputs as a tuple. `example` is one
    valid batch of inputs. Float master parameters stay in the graph and quantizers are `temper::fake_quantize`
    nodes; only `Runtime.export` packs integers. Capture, modes, cost, surgery and storage stand in `temper.graph`.

    An ONNX file, which has no torch program, is a graph of one node: a call of `module.onnx`, which runs the file
    (`temper.graph.onnx.program`). It has no ATen operators and no parameters, so what is said of those is false of it.
    """

    module: "GraphModule"
    schema: Schema
    example: "tuple[Tensor, ...]"

    def copy(self) -> Self:
        """A graph of its own: no parameter, buffer or node is shared with this one."""
        return replace(self, module=copy.deepcopy(self.module))

    def __call__(self, *inputs: "Tensor") -> "tuple[Tensor, ...]":
        outputs: tuple[Tensor, ...] = self.module(*inputs)
        return outputs
