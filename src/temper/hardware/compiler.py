"""The C++ compiler that some runtimes need besides their package."""

import os
import shutil
import sys

from temper.core.errors import MissingExtra


def require_compiler(runtime: str) -> None:
    """Raise MissingExtra, for the runtime of that name, unless the compiler that torch would call is there."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise MissingExtra(
            f"runtime {runtime} needs a C++ compiler, and {compiler!r} is not installed. Add one, such as with: "
            "apt install g++; or name yours in the variable CXX"
        )
