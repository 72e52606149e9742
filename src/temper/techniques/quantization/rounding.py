"""Round weights together, layer by layer, so that the layers' outputs change least.

Quantizers stay as they are; what changes is which integer each weight becomes. Every layer answers for the errors of
the layers before it: its inputs are those of the graph rounded so far, its outputs should be those in float.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from temper.core import catalog
from temper.core.context import Context
from temper.core.errors import NoEffect, UsageError
from temper.core.facts import has_calibration
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.solver import LatticeProblem, Solver
from temper.core.technique import Technique
from temper.graph.facts import has_quantizers, weighted_layers
from temper.graph.quantizers import is_quantizer
from temper.graph.surgery import set_tensor, tensor_of, users_of_tensor
from temper.techniques.quantization._moments import Lockstep, Moments
from temper.techniques.quantization._ranges import batches


@dataclass(frozen=True, kw_only=True)
class Rounding(Technique):
    """Choose the integers of quantized weights by the layers' outputs over calibration inputs.

    A weight that several quantizers or layers read, or that has several scales a channel or several zero points, stays
    as it was.
    """

    needs = (has_calibration, has_quantizers)
    leaves = (has_quantizers,)
    auxiliary = True
    slow = True
    reference = (
        "Frantar et al. 2023, arXiv 2210.17323; Nagel et al. 2020, arXiv 2004.10568; Chen et al. 2025, arXiv 2507.18553"
    )

    solver: str = knob("lattice.beam", help="the solver that chooses a layer's integers, by its name in the catalog")
    damping: float = knob(
        0.01, low=1e-6, high=10.0, unit="mean diagonal", help="pull towards the float weights, against overfitting"
    )
    examples: int = knob(256, low=1, high=1_000_000, help="calibration inputs that are used, at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in catalog.names(Solver):
            raise UsageError(f"{self.name}: solver={self.solver!r} is not one of {', '.join(catalog.names(Solver))}")

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with weights on their grids. Raises: NoEffect if every weight becomes its nearest integer."""
        assert context.calibration is not None
        layers = dict(_rounded_layers(graph))
        if not layers:
            raise NoEffect(f"{self.name}: no layer reads a weight of its own through a quantizer it can work with")
        inputs = list(batches(graph, tuple(each[: self.examples] for each in context.calibration)))
        if not inputs:
            raise NoEffect(f"{self.name}: {len(context.calibration[0])} calibration inputs do not fill one batch")
        solver = catalog.get(Solver, self.solver)()
        changed = 0
        with torch.no_grad():
            runs = Lockstep(graph, inputs)
            for node in runs:
                if node in layers:
                    weight = layers[node]
                    integers = self._integers(weight, runs.moments(node, weight.shape[2:]), solver, context.seed)
                    changed += weight.write(graph, integers)
                    runs.refresh(weight.quantizer)
        if not changed:
            raise NoEffect(f"{self.name}: {self.solver} left the weights of all {len(layers)} layers as they were")
        return graph

    def _integers(self, weight: "_Weight", moments: Moments, solver: Solver, seed: int) -> Tensor:
        """The integers (channels, n) of a layer's weight, without zero point.

        With q the quantized and x the float inputs of W, s X should be the A with the least E[(A q - W x)^2] plus
        the damping of (A - W)^2. That A is the target, and E[q q'] plus damping the matrix of the problem.
        """
        found = []
        groups = zip(
            weight.values.chunk(len(moments.gram)),
            weight.scales.chunk(len(moments.gram)),
            weight.nearest.chunk(len(moments.gram)),
            moments.gram,
            moments.cross,
        )
        for values, scales, nearest, gram, cross in groups:
            if not bool(gram.isfinite().all() and cross.isfinite().all()):
                found.append(nearest)
                continue
            pull = self.damping * float(gram.diagonal().mean()) or 1.0
            damped = gram + pull * torch.eye(len(gram), dtype=gram.dtype)
            exact = values.double()
            aim = torch.linalg.solve(damped, exact @ cross + pull * exact, left=False)
            problem = LatticeProblem(
                gram=(damped / damped.diagonal().mean()).float(),
                target=(aim / scales[:, None]).float(),
                low=weight.low,
                high=weight.high,
            )
            integers = solver.solve(problem, seed)
            better = problem.energy(integers) < problem.energy(nearest)
            found.append(torch.where(better[:, None], integers, nearest))
        return torch.cat(found)


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """A weight behind its quantizer: values (channels, n), scales (channels,), the range without zero point."""

    node: Node
    quantizer: Node
    shape: tuple[int, ...]
    values: Tensor
    scales: Tensor
    low: int
    high: int

    @property
    def nearest(self) -> Tensor:
        """The integers (channels, n) that the quantizer makes of the values, without zero point."""
        return (self.values / self.scales[:, None]).round().clamp(self.low, self.high)

    def write(self, graph: Graph, integers: Tensor) -> int:
        """Store multiples of the scales, which the quantizer leaves alone; how many integers are not the nearest."""
        changed = int((integers != self.nearest).sum())
        if changed:
            set_tensor(graph.module, str(self.node.target), (integers * self.scales[:, None]).reshape(self.shape))
        return changed


def _rounded_layers(graph: Graph) -> Iterator[tuple[Node, _Weight]]:
    for layer in weighted_layers(graph):
        quantizer = layer.args[1]
        if isinstance(quantizer, Node) and is_quantizer(quantizer):
            weight = _weight(graph, quantizer)
            if weight is not None:
                yield layer, weight


def _weight(graph: Graph, quantizer: Node) -> _Weight | None:
    """The weight that only this quantizer reads, for one layer, with one scale a channel or one for all."""
    node, scale_node, zero_node, low, high, axis = quantizer.args
    values, scales, zero = (tensor_of(graph.module, each) for each in (node, scale_node, zero_node))
    if (
        values is None
        or scales is None
        or zero is None
        or scales.dim() > 1
        or axis not in (0, None)
        or bool((zero != zero.flatten()[0]).any())
    ):
        return None
    assert isinstance(node, Node)
    assert isinstance(low, int)
    assert isinstance(high, int)
    if len(quantizer.users) != 1 or len(users_of_tensor(graph.module, str(node.target))) != 1:
        return None
    offset = int(zero.flatten()[0])
    return _Weight(
        node=node,
        quantizer=quantizer,
        shape=tuple(values.shape),
        values=values.detach().flatten(1),
        scales=scales.expand(len(values)),
        low=low - offset,
        high=high - offset,
    )
