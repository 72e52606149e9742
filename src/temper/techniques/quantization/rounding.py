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

    A weight that several quantizers or layers read, or that has several zero points, stays as it was.
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
        parts = zip(
            weight.values.chunk(len(moments.gram)),
            weight.scales.chunk(len(moments.gram)),
            weight.nearest.chunk(len(moments.gram)),
            moments.gram,
            moments.cross,
        )
        for values, scales, nearest, gram, cross in parts:
            if not bool(gram.isfinite().all() and cross.isfinite().all()):
                found.append(nearest)
                continue
            pull = self.damping * float(gram.diagonal().mean()) or 1.0
            damped = gram + pull * torch.eye(len(gram), dtype=gram.dtype)
            exact = values.double()
            aim = torch.linalg.solve(damped, exact @ cross + pull * exact, left=False)
            integers = _by_groups(solver, damped, aim, scales.double(), (weight.low, weight.high), seed)
            kept, given = (_energy(damped, aim, each * _spread(scales, each.shape[1])) for each in (integers, nearest))
            found.append(torch.where((kept < given)[:, None], integers, nearest))
        return torch.cat(found)


def _by_groups(solver: Solver, gram: Tensor, target: Tensor, scales: Tensor, box: tuple[int, int], seed: int) -> Tensor:
    """Integers z (rows, n) with a small energy (s z - target) gram (s z - target)', one group of columns after another.

    `scales` (rows, groups) are those of n / groups neighbouring columns. With gram = R'R, R upper triangular, the last
    group is decided as if all before it could still answer for its errors; theirs are centered anew, at
    target - R_gg^-1 R_gb error_b, b being what is behind group g. So within a group one matrix R_gg'R_gg serves all
    rows. Heavy groups are decided first. With one group this is the whole problem.
    """
    rows, n = target.shape
    count = scales.shape[1]
    size = n // count
    heavy = gram.diagonal().reshape(count, size).mean(1).argsort(stable=True)
    order = (heavy[:, None] * size + torch.arange(size)).flatten()
    root = torch.linalg.cholesky(gram[order][:, order], upper=True)
    integers, errors = torch.empty(rows, n), torch.zeros_like(target)
    for place in reversed(range(count)):
        first, stop = place * size, (place + 1) * size
        own, columns, scale = root[first:stop, first:stop], order[first:stop], scales[:, heavy[place], None]
        coupled = root[first:stop, stop:] @ errors[:, stop:].T
        center = target[:, columns] - torch.linalg.solve_triangular(own, coupled, upper=True).T
        energy = own.T @ own
        problem = LatticeProblem(
            gram=(energy / energy.diagonal().mean()).float(),
            target=(center / scale).float(),
            low=box[0],
            high=box[1],
        )
        integers[:, columns] = solver.solve(problem, seed)
        errors[:, first:stop] = integers[:, columns] * scale - target[:, columns]
    return integers


def _energy(gram: Tensor, target: Tensor, values: Tensor) -> Tensor:
    error = values.double() - target
    return ((error @ gram) * error).sum(1)


def _spread(scales: Tensor, columns: int) -> Tensor:
    """Scales (rows, groups) of neighbouring columns as those of each column, (rows, columns)."""
    return scales.repeat_interleave(columns // scales.shape[1], dim=1)


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """A weight behind its quantizer: values (channels, n), scales (channels, groups), the range without zero point."""

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
        return (self.values / self._grid).round().clamp(self.low, self.high)

    @property
    def _grid(self) -> Tensor:
        return _spread(self.scales, self.values.shape[1])

    def write(self, graph: Graph, integers: Tensor) -> int:
        """Store multiples of the scales, which the quantizer leaves alone; how many integers are not the nearest."""
        changed = int((integers != self.nearest).sum())
        if changed:
            set_tensor(graph.module, str(self.node.target), (integers * self._grid).reshape(self.shape))
        return changed


def _rounded_layers(graph: Graph) -> Iterator[tuple[Node, _Weight]]:
    for layer in weighted_layers(graph):
        quantizer = layer.args[1]
        if isinstance(quantizer, Node) and is_quantizer(quantizer):
            weight = _weight(graph, quantizer)
            if weight is not None:
                yield layer, weight


def _weight(graph: Graph, quantizer: Node) -> _Weight | None:
    """The weight that only this quantizer reads, for one layer, with scales by channel, by group of columns, or one."""
    node, scale_node, zero_node, low, high, axis = quantizer.args
    values, scales, zero = (tensor_of(graph.module, each) for each in (node, scale_node, zero_node))
    if (
        values is None
        or scales is None
        or zero is None
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
    by_row = scales if scales.dim() == 2 else scales.reshape(-1, 1)
    return _Weight(
        node=node,
        quantizer=quantizer,
        shape=tuple(values.shape),
        values=values.detach().flatten(1),
        scales=by_row.expand(len(values), -1),
        low=low - offset,
        high=high - offset,
    )
