"""The processor's name and the instruction sets that decide which kernels are fast on it."""

import platform
import sys
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")


def processor() -> tuple[str, tuple[str, ...]]:
    """Its name, and those of the instruction sets in FEATURES that it has."""
    facts = _facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    return name, tuple(each for each in FEATURES if each in facts.get("flags", "").split())


def _facts() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, where there is one."""
    file = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not file.exists():
        return {}
    lines = (line.partition(":") for line in file.read_text().split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
