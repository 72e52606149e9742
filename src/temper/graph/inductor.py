"""From a graph to one package of native code, made by Inductor, the compiler behind `torch.compile`.

The graph is compiled ahead of time, so that what is loaded is a library and no compiler. Weights are constants of the
package, laid out for the kernels that read them ("frozen"). A product between `quantized_decomposed` operators becomes
one int8 kernel of oneDNN.
"""

import hashlib
import re
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.core.schema import Array
from temper.graph.conversions import digest_of_stored
from temper.graph.programs import exported
from temper.graph.storage import load
from temper.hardware.cache import made_once, user_cache
from temper.hardware.processor import processor

OPTIONS = {
    "freezing": True,
    # The number of threads is read when the package runs, not when it is compiled.
    "cpp.dynamic_threads": True,
}
MARKS = {"cpp.enable_kernel_profile": True}
"""What makes code tell the profiler of each kernel. It took 6 to 18 % of small networks' time, so it is not shipped."""
LOWER = {"bf16": torch.bfloat16}
INTEGER_CALLS = ("qconv", "qlinear")
NAMES = {"float": "float32", "at::BFloat16": "bfloat16", "uint8_t": "bytes", "int8_t": "bytes", "int64_t": "int64"}
"""Fused kernels that read `bytes` move or convert integers; only oneDNN's products count as `int8`."""


def compiled(stored: Path, precision: str, *, marked: bool = False) -> Path:
    """The package of the graph in the folder `stored`, compiled for this processor the first time it is asked for.

    It lies in the user's cache folder. `precision` of float products is f32 or bf16; `marked` code can be profiled.
    Raises: ArtifactError if the folder holds no sound graph; TrialError if Inductor cannot compile it.
    """
    options = {**OPTIONS, **MARKS} if marked else OPTIONS
    facts = (digest_of_stored(stored), precision, str(options), torch.__version__, _code(), *map(str, processor()))
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    place = user_cache() / "inductor" / f"{key}.pt2"
    return made_once(place, lambda file: _compile(load(stored), file, precision, options))


def _code() -> str:
    """A digest of the code that makes packages: one that an earlier version of it made may be wrong."""
    files = (Path(__file__).with_name(name) for name in ("inductor.py", "programs.py", "quantizers.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def executed(package: Path) -> Mapping[str, int]:
    """How many kernels the package calls in each precision, read from the C++ source that lies in it.

    A fused kernel counts as the first type among its arguments, a library call as the type of its weight.
    """
    source = source_of(package)
    return Counter((*fused_kernels(source).values(), *(call.precision for call in library_calls(source))))


def source_of(package: Path) -> str:
    """The C++ source of the code that calls the kernels of a package."""
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if name.endswith(".wrapper.cpp")]
        return "\n".join(archive.read(name).decode() for name in names)


def fused_kernels(source: str) -> dict[str, str]:
    """The precision of each kernel that Inductor wrote itself, by name."""
    found = re.findall(r'extern "C"\s+void\s+(cpp_fused_\w+)\(\s*(?:const )?([\w:]+)\*', source)
    return {name: NAMES.get(kind, kind) for name, kind in found}


@dataclass(frozen=True, kw_only=True)
class LibraryCall:
    """A call of a library's kernel: its name, its precision, and the shape of the weight that it reads, if any."""

    name: str
    precision: str
    weight: tuple[int, ...] | None


def library_calls(source: str) -> list[LibraryCall]:
    """The calls of libraries, in order."""
    kinds = dict(re.findall(r"\.name = \"(\w+)\";\s*constants_info_\[\d+\]\.dtype = cached_torch_dtype_(\w+);", source))
    named = re.findall(r"constants_info_\[(\d+)\]\.name = \"(\w+)\";", source)
    sizes = dict(re.findall(r"constants_info_\[(\d+)\]\.shape = \{([^}]*)\};", source))
    shapes = {name: tuple(map(int, re.findall(r"\d+", sizes.get(index, "")))) for index, name in named}
    calls = []
    for name, arguments in re.findall(r"\baoti_torch_cpu_(\w+)\(([^;]*);", source):
        constants = [each for each in re.findall(r"\w+", arguments) if each in kinds]
        kind = next((kinds[each] for each in constants), "float32")
        precision = "int8" if any(each in name for each in INTEGER_CALLS) else NAMES.get(kind, kind)
        weight = next((shapes[each] for each in constants if len(shapes[each]) > 1), None)
        calls.append(LibraryCall(name=name, precision=precision, weight=weight))
    return calls


class Package:
    """A loaded package: NumPy arrays in and out. Loading runs native code: ask first whether it may be trusted."""

    def __init__(self, file: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        # Not the call of the package itself: sorting nested arguments took 20 of the 84 microseconds of a small net.
        self._run = torch._inductor.aoti_load_package(str(file)).loader.boxed_run

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        # Copies: torch takes no negative strides, and the code reads aligned memory that stays as it is.
        outputs = self._run([torch.from_numpy(array.copy()) for array in arrays])
        return tuple(output.numpy() for output in outputs)


def _compile(graph: Graph, file: Path, precision: str, options: Mapping[str, Any]) -> None:
    own = file.with_suffix(".pt2")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = exported(graph, LOWER.get(precision))
            torch._inductor.aoti_compile_and_package(program, package_path=str(own), inductor_configs=dict(options))
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise TrialError(f"Inductor cannot compile the graph: {type(error).__name__}: {reason}") from error
    if own != file:
        shutil.move(own, file)
