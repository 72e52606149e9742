"""Graphs on disk: the nodes as JSON and the tensors as safetensors, readable without trusting whoever wrote them.

`graph.json` names every operator; `weights.safetensors` holds parameters, buffers and example inputs, each tied
tensor once. The graph of an ONNX file is stored as that file.

Nothing is unpickled or evaluated: an operator is looked up in closed lists, and whatever else would end
in the code that `torch.fx` generates from a graph (names of nodes and tensors) must be a plain identifier.
"""

import json
import keyword
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import Graph as Nodes
from torch.fx import GraphModule, Node

from temper.core.errors import ArtifactError, TrialError
from temper.core.graph import Graph
from temper.core.schema import Schema
from temper.graph.cost import record_values
from temper.graph.onnx.program import graph_of, onnx_model, write_model
from temper.graph.quantizers import FAKE_QUANTIZE

FORMAT = 1
GRAPH_FILE, WEIGHTS_FILE, ONNX_FILE = "graph.json", "weights.safetensors", "model.onnx"

NAMESPACES = {"aten": torch.ops.aten, FAKE_QUANTIZE.namespace: torch.ops.temper, "prims": torch.ops.prims}
REFUSED = re.compile(
    r"from_file|set_|set|set_data|save|resize.*|_resize.*|_reshape_alias.*|_nested_.*|.*_unsafe|_unsafe_(?!view).*"
    r"|manual_seed|load|_test_.*|_cuda.*|_cudnn_init.*|from_blob.*|data_ptr|_make_dep_token.*|_dlpack.*"
)
"""ATen operators that reach outside of their tensors: files, raw storages, memory that nobody checks."""

_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "matmul", "getitem"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "invert", "lshift", "rshift"),
)
_SYMBOLIC = ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt", "sym_sum")
_HIGHER_ORDER = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "cond")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{f"torch.{name}": getattr(torch, name) for name in _SYMBOLIC},
    **{f"higher_order.{name}": getattr(torch.ops.higher_order, name) for name in _HIGHER_ORDER},
}
"""All that a node may call besides operator overloads. (Not `operator.attrgetter` and its kin: they reach all code.)"""

_NAMED: dict[str, dict[str, Any]] = {
    kind: {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, of)}
    for kind, of in (("dtype", torch.dtype), ("layout", torch.layout), ("memory_format", torch.memory_format))
}
_NAMES = {value: (kind, name) for kind, values in _NAMED.items() for name, value in values.items()}
# `torch.fx` writes a part of a path that is no identifier between double quotes: ASCII without `"` and `\` stays there.
_IDENTIFIER, _PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*"), re.compile(r"[ -!#-\[\]-~]+")


def save(graph: Graph, folder: Path) -> None:
    """Write the graph into the folder, which exists and is empty.

    Raises: TrialError naming the node whose operator or argument the format does not hold.
    """
    tensors: dict[str, Tensor] = {}
    model = onnx_model(graph)
    if model is not None:
        write_model(model, folder / ONNX_FILE)
        _write(folder, {"format": FORMAT, "onnx": ONNX_FILE, "schema": graph.schema.to_json()}, _stored_examples(graph))
        return
    fields = {
        "format": FORMAT,
        "schema": graph.schema.to_json(),
        "modules": [
            {"name": name, "nodes": [_saved_node(node) for node in module.graph.nodes]}
            for name, module in graph.module.named_modules(remove_duplicate=False)
            if isinstance(module, GraphModule)
        ],
        "tensors": list(_saved_tensors(graph.module, tensors)),
    }
    _write(folder, fields, tensors | _stored_examples(graph))


def load(folder: Path) -> Graph:
    """The graph that `save` wrote: same bits, names, ties and mode. Nodes carry their value at the example's batch.

    Raises: ArtifactError if a file is missing, malformed, of a newer format, or asks for anything unknown.
    """
    try:
        fields = json.loads((folder / GRAPH_FILE).read_text())
        if fields["format"] != FORMAT:
            raise ArtifactError(f"{folder} holds a graph of format {fields['format']!r}; this temper reads {FORMAT}")
        # Cloned, because tensors mapped from the file are not aligned, and unaligned products round differently.
        arrays = {name: array.clone() for name, array in load_file(folder / WEIGHTS_FILE).items()}
        schema = Schema.from_json(fields["schema"])
        if "onnx" in fields:
            return graph_of(onnx.load(folder / ONNX_FILE), schema, _examples(schema, arrays))
        graph = Graph(module=_loaded_module(fields, arrays), schema=schema, example=_examples(schema, arrays))
        record_values(graph)
    except ArtifactError as error:
        raise ArtifactError(
            f"{folder} must not be loaded: {error}. Get the artifact anew from where it was made"
        ) from None
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise _malformed(folder, error) from error
    except (RuntimeError, SyntaxError, AssertionError, ArithmeticError, MemoryError) as error:
        raise _malformed(folder, error) from error
    return graph


def _stored_examples(graph: Graph) -> dict[str, Tensor]:
    return {f"example:{i}": each.detach().cpu().contiguous().clone() for i, each in enumerate(graph.example)}


def _write(folder: Path, fields: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / GRAPH_FILE).write_text(json.dumps(fields, allow_nan=False, separators=(",", ":")))


def _malformed(folder: Path, error: BaseException) -> ArtifactError:
    reason = str(error).strip().split("\n", 1)[0]
    return ArtifactError(f"{folder} holds no graph that can run ({type(error).__name__}: {reason}). Make it anew")


def _saved_node(node: Node) -> dict[str, Any]:
    if node.op not in ("placeholder", "get_attr", "call_function", "output"):
        raise TrialError(f"node {node.name!r} is a {node.op}, which a stored graph cannot hold")
    saved = {
        "name": node.name,
        "op": node.op,
        "target": _operator_name(node) if node.op == "call_function" else str(node.target),
        "args": [_saved(each, node) for each in node.args],
        "kwargs": {name: _saved(each, node) for name, each in node.kwargs.items()},
    }
    if "dropout_p" in node.meta:
        # `graph.mode` keeps attention's dropout here while the node itself says zero.
        saved["dropout_p"] = node.meta["dropout_p"]
    return saved


def _operator_name(node: Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, name, _ = str(target).split(".")
        if namespace in NAMESPACES and not REFUSED.fullmatch(name):
            return str(target)
    for name, function in FUNCTIONS.items():
        if function is target:
            return name
    raise TrialError(
        f"node {node.name!r} calls {target}, which a stored graph cannot hold: only operators of "
        f"{', '.join(NAMESPACES)} and plain arithmetic can be read back safely"
    )


def _saved(value: Any, node: Node) -> Any:
    """An argument as JSON: lists and scalars as they are, everything else as an object with one key, its kind."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [_saved(each, node) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [_saved(each, node) for each in value]}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _saved(each, node) for key, each in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_saved(each, node) for each in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        kind, name = _NAMES[value]
        return {kind: name}
    raise TrialError(
        f"node {node.name!r} has an argument of type {type(value).__name__}, which a stored graph cannot hold"
    )


def _saved_tensors(module: GraphModule, tensors: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """What to say of each parameter and buffer; puts their data into `tensors`, under the first name that each has."""
    keys: dict[int, str] = {}
    for parameter, named in ((True, module.named_parameters), (False, module.named_buffers)):
        for name, value in named(remove_duplicate=False):
            key = keys.setdefault(id(value), name)
            order = sorted(range(value.dim()), key=[-stride for stride in value.stride()].__getitem__)
            if not value.detach().permute(order).is_contiguous():
                order = list(range(value.dim()))
            if key == name:
                tensors[key] = value.detach().cpu().permute(order).contiguous().clone()
            yield {
                "name": name,
                "key": key,
                "parameter": parameter,
                "requires_grad": value.requires_grad,
                # Kernels round differently in other memory layouts, so the order of dimensions in memory is kept.
                "order": order,
            }


def _loaded_module(fields: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> GraphModule:
    modules = {each["name"]: GraphModule(nn.Module(), Nodes()) for each in fields["modules"]}
    if "" not in modules:
        raise ArtifactError("it has no outermost graph")
    root = modules[""]
    for name in sorted(modules.keys() - {""}):
        owner, leaf = _owner(root, name)
        owner.add_module(leaf, modules[name])
    _register_tensors(root, fields["tensors"], arrays)
    for each in fields["modules"]:
        modules[each["name"]].graph = _loaded_nodes(modules[each["name"]], each["nodes"])
    return root


def _owner(root: nn.Module, name: Any) -> tuple[nn.Module, str]:
    """The module that a dotted name belongs to, made if need be, and the last part of the name."""
    if not isinstance(name, str) or not _PATH.fullmatch(name) or "" in name.split("."):
        raise ArtifactError(f"{name!r} is no name for a tensor or module")
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        inner = owner._modules[part]
        assert inner is not None
        owner = inner
    return owner, leaf


def _register_tensors(root: nn.Module, saved: Sequence[Mapping[str, Any]], arrays: Mapping[str, Tensor]) -> None:
    made: dict[str, Tensor] = {}
    for fields in saved:
        key, order = fields["key"], fields["order"]
        if key not in made:
            if key not in arrays or sorted(order) != list(range(arrays[key].dim())):
                raise ArtifactError(f"tensor {key!r} is missing, or its dimensions are not as stated")
            value = arrays[key].permute([order.index(i) for i in range(len(order))])
            made[key] = (
                nn.Parameter(value, requires_grad=bool(fields["requires_grad"])) if fields["parameter"] else value
            )
        owner, leaf = _owner(root, fields["name"])
        if fields["parameter"]:
            owner.register_parameter(leaf, made[key])  # type: ignore[arg-type]
        else:
            owner.register_buffer(leaf, made[key])


def _examples(schema: Schema, arrays: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    examples = tuple(arrays[f"example:{i}"] for i in range(len(schema.inputs)))
    wrong = schema.mismatch([each.numpy() for each in examples])
    if wrong is not None:
        raise ArtifactError(f"its example does not fit its schema: {wrong}")
    return examples


def _loaded_nodes(module: GraphModule, saved: Sequence[Mapping[str, Any]]) -> Nodes:
    nodes, known = Nodes(), dict[str, Node]()
    for fields in saved:
        name, op = fields["name"], fields["op"]
        kwargs = {_identifier(key): _loaded(each, known) for key, each in fields["kwargs"].items()}
        args = tuple(_loaded(each, known) for each in fields["args"])
        node = nodes.create_node(op, _target(op, fields["target"], module), args, kwargs, name=_identifier(name))
        if node.name != name:
            raise ArtifactError(f"{name!r} names two nodes, or is a word that a node cannot have as its name")
        if "dropout_p" in fields:
            node.meta["dropout_p"] = float(fields["dropout_p"])
        known[name] = node
    nodes.lint()
    return nodes


def _target(op: Any, target: Any, module: GraphModule) -> Any:
    """What a node of this kind refers to, if it is one of the things that it may refer to."""
    if op == "call_function":
        return FUNCTIONS.get(target) or _overload(target)
    if op in ("placeholder", "output"):
        return _identifier(target)
    if op != "get_attr":
        raise ArtifactError(f"a node is a {op!r}")
    owner, leaf = _owner(module, target)
    if leaf not in owner._parameters and leaf not in owner._buffers and leaf not in owner._modules:
        raise ArtifactError(f"a node reads {target!r}, which is not stored")
    return target


def _overload(target: Any) -> torch._ops.OpOverload:
    """The operator of that name, such as `aten.conv2d.default`; nothing is called to find it."""
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) == 3 and parts[0] in NAMESPACES and all(map(_IDENTIFIER.fullmatch, parts)):
        space, name, overload = parts
        if not REFUSED.fullmatch(name):
            packet = getattr(NAMESPACES[space], name, None)
            if isinstance(packet, torch._ops.OpOverloadPacket) and overload in packet.overloads():  # type: ignore[no-untyped-call]
                found: torch._ops.OpOverload = getattr(packet, overload)
                return found
    raise ArtifactError(f"a node calls {target!r}, which is no operator that a stored graph may call")


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        raise ArtifactError(f"{name!r} is no identifier")
    return name


def _loaded(value: Any, known: Mapping[str, Node]) -> Any:
    if isinstance(value, list):
        return [_loaded(each, known) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        if content not in known:
            raise ArtifactError(f"a node reads {content!r} before it is computed")
        return known[content]
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "tuple":
        return tuple(_loaded(each, known) for each in content)
    if kind == "dict":
        return {str(key): _loaded(each, known) for key, each in content.items()}
    if kind == "slice":
        return slice(*(_loaded(each, known) for each in content))
    if kind == "device":
        return torch.device(str(content))
    if kind in _NAMED and content in _NAMED[kind]:
        return _NAMED[kind][content]
    raise ArtifactError(f"an argument is of the unknown kind {kind!r}")
