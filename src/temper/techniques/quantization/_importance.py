"""Which vectors of an activation matter: padding is computed like everything else, and no output depends on it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from temper.core.graph import Graph
from temper.graph.quantizers import is_dynamic_quantizer, is_quantizer


def live_rows(graph: Graph, inputs: Iterable[tuple[Tensor, ...]], nodes: Iterable[Node]) -> dict[Node, list[Tensor]]:
    """For each node (..., channels) and batch, where the outputs depend on the vector: booleans (...).

    What the outputs depend on has a gradient, taken in the float model. A node without any gradient is all live.
    """
    wanted = set(nodes)
    found: dict[Node, list[Tensor]] = {node: [] for node in wanted}
    for batch in inputs:
        with torch.enable_grad():
            traced = _Traced(graph, wanted)
            outputs = [each for each in traced.run(*batch) if each.requires_grad]
            kept = list(traced.kept.items())
            # Squares, because the plain sum of a softmax or a norm has no gradient.
            total = torch.stack([(each.double() ** 2).sum() for each in outputs]).sum() if outputs else None
            gradients: Sequence[Tensor | None] = [None] * len(kept)
            if total is not None and kept:
                gradients = torch.autograd.grad(total, [value for _, value in kept], allow_unused=True)
        for (node, value), gradient in zip(kept, gradients):
            # A gradient that overflows is none that is zero.
            live = torch.zeros(()) if gradient is None else gradient.abs().amax(-1) != 0
            found[node].append(live if bool(live.any()) else torch.ones(value.shape[:-1], dtype=torch.bool))
    return found


class _Traced(Interpreter):
    """Runs the float model and keeps what the wanted nodes compute, with the way to its gradient."""

    def __init__(self, graph: Graph, wanted: set[Node]) -> None:
        super().__init__(graph.module)
        self.wanted = wanted
        self.kept: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> object:
        if is_quantizer(n) or is_dynamic_quantizer(n):
            return self.env[n.args[0]]  # type: ignore[index]
        value = super().run_node(n)
        if n in self.wanted:
            assert isinstance(value, Tensor)
            # Frozen parameters leave a value without a gradient; it then starts here, and may be changed in place.
            self.kept[n] = value if value.requires_grad else value.detach().requires_grad_().clone()
            return self.kept[n]
        return value
