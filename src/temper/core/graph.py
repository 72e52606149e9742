"""The one representation of a model: a `torch.export` program in training IR."""

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from temper.core.schema import Schema

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A trainable graph of ATen operators whose parameters keep their original names.

    `module` takes the flat inputs of `schema` by position and returns the flat outputs as a tuple. `example` is one
    valid batch of inputs. Float master parameters stay in the graph and quantizers are `temper::fake_quantize`
    nodes; only `Runtime.export` packs integers. Capture, modes, cost, surgery and storage stand in `temper.graph`.
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
