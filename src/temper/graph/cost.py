"""What a graph costs at a batch: floating-point operations, bytes moved, bytes held; and its shapes.

Nothing is computed: the graph runs on tensors without data, so the numbers are right after any surgery, whatever
`node.meta` remembers. Products count 2 FLOPs a multiply-add and nothing for the bias. Every other operator that
computes counts one for each element of the largest tensor that it reads or writes (a pointwise operator's output, a
reduction's input). Operators that only move data count none, and views of their input neither FLOPs nor bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from temper.core.errors import UsageError
from temper.core.graph import Graph
from temper.core.schema import TensorSpec

VALUE_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)
"""What a run without data raises where a shape depends on values."""

MOVEMENTS = """
    _reshape_copy _to_copy _unsafe_view arange cat channel_shuffle chunk clone concat concatenate constant_pad_nd
    contiguous copy copy_ detach embedding empty empty_like expand expand_copy eye fill_ flatten flip full full_like
    gather im2col index index_copy index_put index_put_ index_select lift_fresh_copy linspace masked_select
    new_empty new_full new_ones new_zeros nonzero ones ones_like pad permute_copy pixel_shuffle pixel_unshuffle
    reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad1d replication_pad2d reshape roll
    scalar_tensor scatter select_scatter slice_scatter split_with_sizes_copy squeeze stack swapaxes take to
    transpose tril triu type_as unflatten unfold upsample_nearest1d upsample_nearest2d zero_ zeros zeros_like
""".split()  # noqa: SIM905 -- sixty names read better so
"""Operators that only copy, place or create values. (Views need no list: they share their input's storage.)"""

WRAPPERS = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """One operator call: FLOPs; bytes of activations read and written, and of stored tensors read."""

    name: str
    operator: str
    flops: int
    read_bytes: int
    written_bytes: int
    weight_bytes: int

    @property
    def bytes(self) -> int:
        """All bytes that the call moves: activations in, weights in, results out."""
        return self.read_bytes + self.written_bytes + self.weight_bytes


@dataclass(frozen=True, kw_only=True)
class GraphCost:
    """The calls of a graph in order; `weight_bytes` counts each stored tensor once.

    `activation_peak_bytes` is the most that inputs and results hold at one time when each is freed after its last
    use; what operators allocate inside is not in it.
    """

    nodes: tuple[NodeCost, ...]
    weight_bytes: int
    activation_peak_bytes: int

    @property
    def flops(self) -> int:
        return sum(node.flops for node in self.nodes)

    @property
    def bytes(self) -> int:
        """All bytes that the calls move, with no cache between them."""
        return sum(node.bytes for node in self.nodes)


def cost(graph: Graph, batch: int, length: int | None = None) -> GraphCost:
    """The cost of one run at that batch, in the graph's present mode; branches of `torch.cond` are not looked into.

    `length` is that of the inputs where it is dynamic; without it, the example's own.

    Raises: UsageError if the graph has another, fixed batch.
    """
    calls, stored = _run(graph, batch, length)
    weights = set(map(_storage, stored))
    return GraphCost(
        nodes=tuple(_node_cost(call, weights) for call in calls if call.node.op == "call_function"),
        weight_bytes=sum(map(_size_bytes, stored)),
        activation_peak_bytes=_peak_bytes(calls, weights),
    )


def shapes(graph: Graph, batch: int, length: int | None = None) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each node whose value is one tensor, by node name, at a batch and length as for `cost`.

    Raises: UsageError if the graph has another, fixed batch.
    """
    calls, _ = _run(graph, batch, length)
    return {call.name: (tuple(call.value.shape), call.value.dtype) for call in calls if isinstance(call.value, Tensor)}


def record_values(graph: Graph) -> None:
    """Write each node's value at the example's batch, without data, into `node.meta["val"]`, as capture does.

    Where a shape depends on values, the nodes behind it get none.
    """
    recorder = _Recorder(graph.module)
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            recorder.mode = mode
            recorder.run(*(mode.from_tensor(each) for each in graph.example))
    except VALUE_DEPENDENT:
        pass
    for call in recorder.calls:
        if call.name == call.node.name:
            call.node.meta["val"] = call.value


@dataclass(frozen=True, kw_only=True)
class _Call:
    name: str
    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any

    @property
    def inputs(self) -> list[Tensor]:
        return _tensors((self.args, self.kwargs))


class _Recorder(Interpreter):
    """Runs a graph and remembers every call; under a fake mode, stored tensors are read without their data."""

    def __init__(self, module: GraphModule, prefix: str = "", mode: FakeTensorMode | None = None) -> None:
        super().__init__(module)
        self.prefix, self.mode = prefix, mode
        self.calls: list[_Call] = []
        self.stored: dict[int, Tensor] = {}

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.stored:
            self.stored[id(value)] = value if self.mode is None else self.mode.from_tensor(value)
        return self.stored[id(value)]

    def run_node(self, n: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = self._run_body(n, args) if n.target in WRAPPERS else super().run_node(n)
        self.calls.append(_Call(name=self.prefix + n.name, node=n, args=args, kwargs=kwargs, value=value))
        return value

    def _run_body(self, node: Node, args: Sequence[Any]) -> Any:
        """Run the inner graph of a wrapper with its operands, which stand behind it, and remember its calls."""
        place = next(i for i, each in enumerate(args) if isinstance(each, GraphModule))
        inner = _Recorder(args[place], f"{self.prefix}{node.name}.", self.mode)
        automatic = torch.autocast(*args[:place]) if node.target is WRAPPERS[1] else nullcontext()
        with automatic:
            value = inner.run(*args[place + 1 :])
        self.calls += [call for call in inner.calls if call.node.op == "call_function"]
        self.stored |= inner.stored
        return value


def _run(graph: Graph, batch: int, length: int | None) -> tuple[list[_Call], list[Tensor]]:
    fixed = graph.schema.batch
    if batch < 1 or fixed not in (None, batch):
        raise UsageError(
            f"the graph cannot run at batch {batch}: "
            + ("a batch is at least 1" if batch < 1 else f"it was captured at the fixed batch {fixed}")
        )
    inputs = [_resized(each, spec, batch, length) for spec, each in zip(graph.schema.inputs, graph.example)]
    with torch.no_grad():
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                recorder = _Recorder(graph.module, mode=mode)
                recorder.run(*map(mode.from_tensor, inputs))
        except VALUE_DEPENDENT:
            # A shape depends on values: only a run on the example's own rows, repeated, can tell.
            recorder = _Recorder(graph.copy().module)
            recorder.run(*inputs)
    return recorder.calls, list(recorder.stored.values())


def _resized(example: Tensor, spec: TensorSpec, batch: int, length: int | None) -> Tensor:
    """The example's rows, repeated or cut to that batch and length where those are dynamic."""
    if spec.shape and spec.shape[0] is None:
        example = example[torch.arange(batch) % len(example)]
    axis = spec.length_axis
    if axis is not None and length is not None:
        example = example.index_select(axis, torch.arange(length) % example.shape[axis])
    return example


def _node_cost(call: _Call, weights: set[int]) -> NodeCost:
    target = call.node.target
    outputs, inputs = _tensors(call.value), list({id(each): each for each in call.inputs}.values())
    schema = target._schema if isinstance(target, torch._ops.OpOverload) else None
    moves_nothing = schema is None or not outputs or (not schema.is_mutable and _are_views(outputs, inputs))
    if moves_nothing:
        return _counted(call)
    assert schema is not None
    name = schema.name
    if name in PRODUCTS:
        flops = PRODUCTS[name](call.args, call.kwargs, outputs[0])
    elif name.removeprefix("aten::") in MOVEMENTS:
        flops = 0
    else:
        flops = max((each.numel() for each in (*inputs, *outputs)), default=0)
    written = sum(map(_size_bytes, outputs))
    read = sum(_size_bytes(each) for each in inputs if _storage(each) not in weights)
    stored = sum(_size_bytes(each) for each in inputs if _storage(each) in weights)
    if name in ("aten::embedding", "aten::index_select", "aten::index"):
        # Only the rows that are looked up leave memory, not the whole table.
        stored = min(stored, written)
    return _counted(call, flops=flops, read=read, written=written, stored=stored)


def _counted(call: _Call, *, flops: int = 0, read: int = 0, written: int = 0, stored: int = 0) -> NodeCost:
    target = call.node.target
    operator = str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    return NodeCost(
        name=call.name,
        operator=operator,
        flops=flops,
        read_bytes=read,
        written_bytes=written,
        weight_bytes=stored,
    )


def _are_views(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    return {_storage(each) for each in outputs} <= {_storage(each) for each in inputs}


def _peak_bytes(calls: Sequence[_Call], weights: set[int]) -> int:
    """The most bytes alive after any call, by storage, so that views count once."""
    last_use: dict[int, int] = {}
    for step, call in enumerate(calls):
        for tensor in (*call.inputs, *_tensors(call.value)):
            last_use[_storage(tensor)] = step
    sizes = {
        _storage(each): each.untyped_storage().nbytes()
        for call in calls
        if call.node.op == "placeholder"
        for each in _tensors(call.value)
    }
    alive, peak = dict(sizes), sum(sizes.values())
    for step, call in enumerate(calls):
        for tensor in _tensors(call.value):
            if _storage(tensor) not in weights:
                alive[_storage(tensor)] = tensor.untyped_storage().nbytes()
        peak = max(peak, sum(alive.values()))
        for storage in [each for each in alive if last_use.get(each, -1) <= step]:
            del alive[storage]
    return peak


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _size_bytes(tensor: Tensor) -> int:
    """Bytes that a reader of the tensor touches: an expanded one is no larger than what it was expanded from."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _convolution(args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> int:
    """Each output element is a sum over in_channels / groups * kernel elements."""
    weight = args[1]
    return 2 * output.numel() * int(prod(weight.shape[1:]))


def _transposed_convolution(args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> int:
    """Each input element adds to out_channels / groups * kernel elements."""
    return 2 * int(args[0].numel()) * int(prod(args[1].shape[1:]))


def _either_convolution(args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> int:
    formula = _transposed_convolution if args[6] else _convolution
    return formula(args, kwargs, output)


def _product(args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> int:
    """(..., m, k) by (k, n), or by a weight (n, k): each output element is a sum over k."""
    return 2 * output.numel() * int(args[0].shape[-1])


def _added_product(args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> int:
    return _product(args[1:], kwargs, output)


def _summed_products(args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> int:
    """`addbmm` also sums over the batch of its matrices."""
    return _product(args[1:], kwargs, output) * int(args[1].shape[0])


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> int:
    """Query (..., L, E) by key (..., S, E), then scores (..., L, S) by value (..., S, V). A mask saves nothing."""
    query, key, value = args[:3]
    scores = int(prod(query.shape[:-1])) * int(key.shape[-2])
    return 2 * scores * int(query.shape[-1] + value.shape[-1])


def _recurrent(args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> int:
    """LSTM, GRU, RNN: every weight matrix is applied once to each step of each sequence."""
    steps = int(prod(args[0].shape[:-1]))
    return 2 * steps * sum(int(each.numel()) for each in args[2] if each.dim() == 2)


def _einsum(args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> int:
    """Operands are contracted from left to right; a label that only one of two has, and nothing later, is summed first.

    An ellipsis stands for the leading dimensions that the labels leave over.
    """
    equation, operands = args[0].replace(" ", ""), args[1]
    terms, _, result = equation.partition("->")
    sizes: dict[str, int] = {}
    labelled = []
    for term, operand in zip(terms.split(","), operands, strict=True):
        spare = operand.dim() - len(term.replace("...", ""))
        labels = list(term.replace("...", "")) if "..." not in term else _spelled(term, spare)
        labelled.append(set(labels))
        for label, size in zip(labels, operand.shape):
            sizes[label] = max(sizes.get(label, 1), int(size))
    ellipsis = {label for label in sizes if len(label) > 1}
    once = {label for label in sizes if terms.count(label) == 1}
    kept = (set(result.replace("...", "")) if "->" in equation else once) | ellipsis
    flops, left = 0, labelled[0]
    for position, right in enumerate(labelled[1:], 2):
        later = kept.union(*labelled[position:])
        joint = (left & right) | ((left | right) & later)
        # Where nothing is summed over, there is one multiplication and no addition.
        flops += (2 if joint - later else 1) * prod(sizes[label] for label in joint)
        left = joint & later
    return flops or int(operands[0].numel())


def _spelled(term: str, spare: int) -> list[str]:
    """The labels of a term, its ellipsis spelled out and counted from the right, as broadcasting aligns it."""
    before, _, after = term.partition("...")
    return [*before, *(f"...{spare - i}" for i in range(spare)), *after]


Formula = Callable[[Sequence[Any], Mapping[str, Any], Tensor], int]

PRODUCTS: dict[str, Formula] = {
    "aten::conv1d": _convolution,
    "aten::conv2d": _convolution,
    "aten::conv3d": _convolution,
    "aten::convolution": _either_convolution,
    "aten::conv_transpose1d": _transposed_convolution,
    "aten::conv_transpose2d": _transposed_convolution,
    "aten::conv_transpose3d": _transposed_convolution,
    "aten::linear": _product,
    "aten::matmul": _product,
    "aten::mm": _product,
    "aten::bmm": _product,
    "aten::mv": _product,
    "aten::dot": _product,
    "aten::inner": _product,
    "aten::addmm": _added_product,
    "aten::addmv": _added_product,
    "aten::baddbmm": _added_product,
    "aten::addbmm": _summed_products,
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "aten::lstm": _recurrent,
    "aten::gru": _recurrent,
    "aten::rnn_tanh": _recurrent,
    "aten::rnn_relu": _recurrent,
}
"""FLOPs of the operators that multiply and add, from their arguments and first output."""
