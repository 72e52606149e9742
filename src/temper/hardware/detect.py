"""What this machine is: processor, cores, memory, instruction sets and the versions of what runs on it."""

import platform
import sys
from importlib import metadata
from pathlib import Path

import psutil

from temper.core import catalog
from temper.core.errors import MissingExtra
from temper.core.runtime import Runtime
from temper.core.target import Target
from temper.hardware.cores import available

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")
PACKAGES = ("temper-ml", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino")


def this_host() -> Target:
    """The host as a target, with every runtime that is installed."""
    facts = _processor_facts()
    return Target(
        processor=facts.get("model name") or platform.processor() or platform.machine(),
        cores=len(available()),
        memory_bytes=psutil.virtual_memory().total,
        features=tuple(each for each in FEATURES if each in facts.get("flags", "").split()),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={"python": platform.python_version(), **_versions()},
        runtimes=tuple(name for name in catalog.names(Runtime) if _installed(name)),
    )


def missing_runtimes() -> dict[str, str]:
    """Each runtime of the catalog that is not installed, with the sentence that says how to add it."""
    missing = {}
    for name in catalog.names(Runtime):
        try:
            catalog.get(Runtime, name).require()
        except MissingExtra as error:
            missing[name] = str(error)
    return missing


def _installed(name: str) -> bool:
    return name not in missing_runtimes()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor_facts() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, where there is one."""
    file = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not file.exists():
        return {}
    lines = (line.partition(":") for line in file.read_text().split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
