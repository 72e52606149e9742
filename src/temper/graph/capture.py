"""From a module to a graph: `torch.export` in training IR, checked against the module itself."""

import contextlib
import copy
import dataclasses
import inspect
import io
import logging
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from temper.core.errors import CaptureError
from temper.core.graph import Graph
from temper.core.schema import LENGTH, Schema, TensorSpec
from temper.graph.mode import set_training
from temper.graph.patterns.linears import with_linears

TOLERANCE = 1e-3
"""Greatest difference, relative to the output's own scale, between the graph and the module that it came from."""

NO_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled

Call = tuple[tuple[Tensor, ...], dict[str, Tensor]]


def capture(
    model: nn.Module,
    call: Call,
    *,
    names: Sequence[str],
    axes: Sequence[int | None] = (),
    others: Sequence[Call] = (),
) -> Graph:
    """Capture the module as a graph in evaluation mode.

    `call` holds the positional and keyword example inputs, each (batch, ...) with a batch of at least 2; `names`
    names them in that order. `axes` says which axis of each input is dynamic and called `length`; it is at least 2 in
    `call`, and `others` are calls at other lengths that the graph must follow. Training mode with a dynamic batch is
    tried first; a module that only works in evaluation mode or at a fixed batch is captured so.

    Raises: CaptureError naming the line of the user's code that is the reason, and the remedy.
    """
    model = own_copy(model)
    check_weights(model)
    expected, nesting, output_names = _reference(model, call)
    failure: Exception | None = None
    disagrees = False
    for training in (True, False):
        for dynamic in (True, False):
            try:
                module = _export(model.train(training), call, _dynamic(call, axes, batch=dynamic))
            except Exception as error:  # noqa: BLE001 -- torch.export raises whatever the user's forward raises
                failure = failure or error
                continue
            if len(_results(module)) != len(expected):
                # Some models return more, or less, while they are trained.
                continue
            schema = _schema(module, call, names, axes, output_names, nesting, expected)
            graph = Graph(module=module, schema=schema, example=call_inputs(call))
            set_training(graph, False)
            if (
                _agrees(graph, expected)
                and (not dynamic or _agrees_at_other_batches(graph, model, call))
                and all(_agrees_at(graph, model, other) for other in others)
            ):
                return graph
            disagrees = True
    if disagrees or failure is None:
        raise CaptureError(
            f"{type(model).__name__}: the captured graph does not compute what the module computes. The usual cause is "
            "randomness or state that is changed in forward; make forward a pure function of its inputs in eval mode"
            + (". Or it treats inputs of another length otherwise than those of this one" if others else "")
        )
    raise CaptureError(_explain(model, failure)) from failure


def call_inputs(call: Call) -> tuple[Tensor, ...]:
    """The flat inputs of a call, in the order of the graph's placeholders."""
    positional, keyword = call
    return (*positional, *keyword.values())


def check_weights(model: nn.Module) -> None:
    """Raise CaptureError naming the first parameter or buffer that holds NaN or infinity."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise CaptureError(
                f"{type(model).__name__}: parameter {name!r} holds {bad} values that are NaN or infinite, of "
                f"{tensor.numel()}. A model in this state cannot be optimized; load a checkpoint from before it broke"
            )


def own_copy(model: nn.Module) -> nn.Module:
    """A float32 copy on the CPU, which returns dicts where the model returns dataclasses."""
    try:
        own = copy.deepcopy(model).cpu().float()
    except RuntimeError as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied: {str(error).strip().split(chr(10), 1)[0]}. A tensor that was "
            "computed from parameters is kept as an attribute; compute it in forward, or use "
            "torch.nn.utils.parametrizations instead of hooks that store it"
        ) from error
    own.register_forward_hook(lambda module, inputs, outputs: _plain(outputs))
    return own


def _plain(outputs: Any) -> Any:
    """Dataclasses and mappings of any class as plain dicts without None, which `torch.export` can flatten."""
    if isinstance(outputs, Mapping):
        return {key: _plain(value) for key, value in outputs.items() if value is not None}
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        fields = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
        return _plain(fields)
    return outputs


def _dynamic(call: Call, axes: Sequence[int | None], *, batch: bool) -> list[tuple[int, ...]]:
    """The dynamic axes of each input."""
    lengths = [() if axis is None else (axis,) for axis in axes] or [()] * len(call_inputs(call))
    return [(0, *each) if batch else each for each in lengths]


def _export(model: nn.Module, call: Call, dynamic: Sequence[tuple[int, ...]]) -> GraphModule:
    """The module with these axes of its inputs symbolic. Raises: CaptureError if one of them is not."""
    positional, keyword = call
    shapes = None
    if any(dynamic):
        flat = [dict.fromkeys(axes, Dim.AUTO) for axes in dynamic]
        named = dict(zip(keyword, flat[len(positional) :]))
        shapes = dict(inspect.signature(model.forward).bind(*flat[: len(positional)], **named).arguments)
    with warnings.catch_warnings(), _silence():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, positional, keyword, dynamic_shapes=shapes, strict=False)
        module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    for node, axes in zip(module.graph.find_nodes(op="placeholder"), dynamic):
        for axis in axes:
            size = node.meta["val"].shape[axis]
            if not _is_symbolic(size):
                raise CaptureError(
                    f"the batch is specialized to {size}"
                    if axis == 0
                    else f"the length of {node.name!r} is specialized to {size}: forward writes it into a shape, or "
                    "branches on it. Take sizes from the inputs (x.shape[1]), or pad all examples to that length"
                )
    return _flattened(module)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what torch prints about an attempt that fails from the user: the last attempt's reason is what counts."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _flattened(module: GraphModule) -> GraphModule:
    """Flat positional inputs and a flat tuple of tensor outputs, instead of the module's own nesting.

    The result is a module of its own class: without the hooks that check how the inputs nest.
    """
    _inline_no_grad(module)
    graph = module.graph
    graph.set_codegen(CodeGen())
    for node in list(graph.nodes):
        guards = node.op == "call_module" and node.target == "_guards_fn"
        if guards or (node.op == "call_function" and _counts_batches(node)):
            graph.erase_node(node)
    output = graph.output_node()
    leaves = [leaf for leaf in pytree.tree_leaves(output.args) if isinstance(leaf, torch.fx.Node)]
    output.args = (tuple(leaf for leaf in leaves if isinstance(leaf.meta.get("val"), Tensor)),)
    graph.eliminate_dead_code()
    return with_linears(GraphModule(module, graph))


def _inline_no_grad(module: GraphModule) -> None:
    """Put what runs under `torch.no_grad` into the graph itself, where techniques see it; its results are detached."""
    for node in module.graph.find_nodes(op="call_function", target=NO_GRAD):
        enabled, body_node, *operands = node.args
        body = getattr(module, body_node.target)
        _inline_no_grad(body)
        if enabled or not _can_stand_outside(body):
            continue
        with module.graph.inserting_before(node):
            outer: Any = dict(zip(body.graph.find_nodes(op="placeholder"), operands))
            results: Any = module.graph.graph_copy(body.graph, outer)
            for result in list(node.users):
                source = results[result.args[1]]
                detached = module.graph.call_function(torch.ops.aten.detach.default, (source,))
                detached.meta = dict(result.meta)
                result.replace_all_uses_with(detached)
                module.graph.erase_node(result)
        module.graph.erase_node(node)


def _can_stand_outside(body: GraphModule) -> bool:
    """Whether the body reads all tensors from its operands and changes none of them."""
    for node in body.graph.nodes:
        if node.op == "get_attr":
            return False
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            first = node.args[0] if node.args else None
            mutates = node.target._schema.is_mutable and not _counts_batches(node)
            if mutates and isinstance(first, torch.fx.Node) and first.op == "placeholder":
                return False
    return True


def _counts_batches(node: torch.fx.Node) -> bool:
    """Whether the node only counts the batches that a batch norm has seen, which nothing reads."""
    if node.target is not torch.ops.aten.add_.Tensor or node.users:
        return False
    counter = node.args[0]
    return isinstance(counter, torch.fx.Node) and str(counter.target).endswith("num_batches_tracked")


def _reference(model: nn.Module, call: Call) -> tuple[list[Tensor], str, list[str]]:
    """The module's own flat outputs in evaluation mode, how they nest, and their names."""
    positional, keyword = call
    try:
        with torch.no_grad():
            outputs = model.eval()(*positional, **keyword)
    except Exception as error:
        shapes = ", ".join(f"{tuple(value.shape)} {value.dtype}" for value in call_inputs(call))
        raise CaptureError(
            f"{type(model).__name__} fails on an example from the data ({shapes}): {type(error).__name__}: {error}. "
            f"{_place(error)}Check that the data holds what the model takes"
        ) from error
    return flat_outputs(outputs, type(model).__name__)


def flat_outputs(outputs: Any, model: str) -> tuple[list[Tensor], str, list[str]]:
    """The tensors in a module's return value, how they nest (`tensor`, `tuple` or `dict`), and their names."""
    outputs, returned = _plain(outputs), outputs
    leaves = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(outputs)[0] if isinstance(leaf, Tensor)]
    if not leaves:
        raise CaptureError(f"{model} returns no tensor, but {type(returned).__name__}; return tensors from forward")
    names = [_path_name(path) for path, _ in leaves]
    nesting = "tensor" if isinstance(outputs, Tensor) else "dict" if isinstance(outputs, Mapping) else "tuple"
    return [leaf for _, leaf in leaves], nesting, names


def _path_name(path: tuple[Any, ...]) -> str:
    keys = [str(getattr(step, "key", getattr(step, "idx", getattr(step, "name", step)))) for step in path]
    name = "_".join(keys)
    return f"output_{name}" if name.replace("_", "").isdigit() else name or "output"


def _is_symbolic(size: object) -> bool:
    """Whether a size is open: a symbol that turned out to have one value is not."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _schema(
    module: GraphModule,
    call: Call,
    names: Sequence[str],
    axes: Sequence[int | None],
    output_names: Sequence[str],
    nesting: str,
    expected: Sequence[Tensor],
) -> Schema:
    inputs = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    lengths = {str(value.shape[axis]) for value, axis in zip(inputs, axes) if axis is not None}
    return Schema(
        inputs=_specs(names, call_inputs(call), inputs, lengths),
        outputs=_specs(output_names, expected, [node.meta["val"] for node in _results(module)], lengths),
        nesting=nesting,
    )


def _results(module: GraphModule) -> Sequence[torch.fx.Node]:
    """The nodes whose values the graph returns."""
    results: Any = module.graph.output_node().args[0]
    return tuple(results)


def _specs(
    names: Sequence[str], tensors: Sequence[Tensor], values: Sequence[Tensor], lengths: set[str]
) -> tuple[TensorSpec, ...]:
    """What tensors are: sizes that are symbolic in `values` are dynamic, and one of `lengths` is called so."""

    def size(known: int, symbol: object) -> int | str | None:
        if not _is_symbolic(symbol):
            return known
        return LENGTH if str(symbol) in lengths else None

    return tuple(
        TensorSpec(
            name=name,
            shape=tuple(map(size, tensor.shape, value.shape)),
            dtype=str(tensor.dtype).removeprefix("torch."),
        )
        for name, tensor, value in zip(names, tensors, values, strict=True)
    )


def _agrees(graph: Graph, expected: Sequence[Tensor], inputs: tuple[Tensor, ...] | None = None) -> bool:
    with torch.no_grad():
        outputs = graph(*(graph.example if inputs is None else inputs))
    return len(outputs) == len(expected) and all(map(_close, outputs, expected))


def _agrees_at_other_batches(graph: Graph, model: nn.Module, call: Call) -> bool:
    """Whether the graph follows the module at one example more, and at a single one if the module itself allows it.

    Export may take a batch for dynamic that forward has written into a shape; only another batch can tell.
    """
    more: Call = pytree.tree_map(lambda each: torch.cat((each, each[:1])), call)
    single: Call = pytree.tree_map(lambda each: each[:1], call)
    try:
        if not _agrees_at(graph, model, more):
            return False
    except CaptureError:
        return False
    try:
        return _agrees_at(graph, model, single)
    except CaptureError:
        return True


def _agrees_at(graph: Graph, model: nn.Module, call: Call) -> bool:
    """Whether the graph computes what the module computes on these inputs. Raises: CaptureError if that fails."""
    expected, _, _ = _reference(model, call)
    try:
        return _agrees(graph, expected, call_inputs(call))
    except Exception:  # noqa: BLE001 -- a graph that fails at this size raises whatever its operators raise
        return False


def _close(output: Tensor, expected: Tensor) -> bool:
    if output.shape != expected.shape or not expected.is_floating_point():
        return output.shape == expected.shape and bool(torch.equal(output, expected))
    finite = torch.isfinite(expected)
    if not torch.equal(output[~finite].nan_to_num(), expected[~finite].nan_to_num()):
        return False
    output, expected = output[finite], expected[finite]
    scale = expected.abs().amax().clamp_min(1e-6) if expected.numel() else 1.0
    return bool(((output - expected).abs() <= TOLERANCE * scale).all())


def _explain(model: nn.Module, error: Exception) -> str:
    first_line = str(error).strip().split("\n", 1)[0]
    return (
        f"{type(model).__name__} cannot be captured: {type(error).__name__}: {first_line}. "
        f"{_place(error)}{_remedy(str(error))}"
    )


def _place(error: BaseException) -> str:
    """The innermost line outside of torch, temper and the standard library, and the user's own line that led there."""
    installed = Path(sysconfig.get_path("purelib"))
    skipped = (Path(torch.__file__).parent, Path(__file__).parents[1])
    standard = Path(sysconfig.get_path("stdlib"))
    frames = []
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        of_python = file.is_relative_to(standard) and "site-packages" not in file.parts
        if file.exists() and not of_python and not any(map(file.is_relative_to, skipped)):
            frames.append(frame)
    if not frames:
        return ""
    own = next((frame for frame in frames if not Path(frame.filename).is_relative_to(installed)), frames[0])
    way = "" if own is frames[0] else f", called from {own.filename}:{own.lineno}: `{own.line}`"
    reason = frames[0]
    return f"The reason is at {reason.filename}:{reason.lineno}, in {reason.name}: `{reason.line}`{way}. "


def _remedy(message: str) -> str:
    if "data-dependent" in message.lower() or "GuardOnDataDependentSymNode" in message:
        return (
            "forward needs the value of a tensor (an if, .item(), int() or float()), which is only known when it runs: "
            "replace a branch with torch.where or torch.cond, keep the value a tensor, or decide outside of the model"
        )
    if "numpy" in message.lower():
        return "forward leaves torch for NumPy: use the torch function of the same name"
    return (
        "torch.export must be able to trace forward: no branches on tensor values, no Python side effects, tensors in "
        "and tensors out"
    )
