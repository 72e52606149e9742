"""What this machine is: processor, cores, memory, instruction sets and the versions of what runs on it."""

import platform
from importlib import metadata

import psutil

from temper.core import catalog
from temper.core.errors import MissingExtra
from temper.core.runtime import Runtime
from temper.core.target import Target
from temper.hardware.cores import available
from temper.hardware.precision import precisions
from temper.hardware.processor import processor

PACKAGES = ("temper-ml", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino", "executorch")


def this_host() -> Target:
    """The host as a target, with every runtime that is installed."""
    name, features = processor()
    return Target(
        processor=name,
        cores=len(available()),
        memory_bytes=psutil.virtual_memory().total,
        features=features,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={"python": platform.python_version(), **_versions()},
        runtimes=tuple(name for name in catalog.names(Runtime) if _installed(name)),
        precisions=precisions(),
    )


def missing_runtimes() -> dict[str, str]:
    """Each runtime of the catalog that is not installed, with the sentence that says how to add it."""
    missing = {}
    for name in catalog.names(Runtime):
        try:
            catalog.get(Runtime, name).require_to_export()
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
