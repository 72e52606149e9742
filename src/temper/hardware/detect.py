"""What this machine is: processor, cores, memory, instruction sets and the versions of what runs on it."""

import platform
from collections.abc import Sequence
from importlib import metadata

import psutil

from temper.core import catalog
from temper.core.errors import MissingExtra, UsageError
from temper.core.runtime import Runtime
from temper.core.target import Target
from temper.hardware.cores import available
from temper.hardware.precision import precisions
from temper.hardware.processor import processor

PACKAGES = ("temper-ml", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino", "executorch")


def this_host(runtimes: Sequence[str] | None = None) -> Target:
    """The host as a target, with these runtimes, or with every installed one that needs no request.

    Raises: UsageError for a name that no runtime has; MissingExtra for one that is not installed.
    """
    name, features = processor()
    return Target(
        processor=name,
        cores=len(available()),
        memory_bytes=psutil.virtual_memory().total,
        features=features,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={"python": platform.python_version(), **_versions()},
        runtimes=_usable() if runtimes is None else _requested(runtimes),
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


def _usable() -> tuple[str, ...]:
    missing = missing_runtimes()
    present = (name for name in catalog.names(Runtime) if name not in missing)
    return tuple(name for name in present if not catalog.get(Runtime, name).on_request)


def _requested(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        catalog.get(Runtime, name).require_to_export()
    if not names:
        raise UsageError(f"no runtime was named; there are: {', '.join(catalog.names(Runtime))}")
    return tuple(dict.fromkeys(names))


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
