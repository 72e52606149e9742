"""Who imports whom, and what an import costs."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "onnx",
    "onnxscript",
    "scipy",
    "plotly",
    "sklearn",
    "pandas",
    "openvino",
    "onnxruntime",
    "torchmetrics",
)
LEAN_S = 0.3
BUSY = 3.0
"""A load average from which times mean nothing."""


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after running the code."""
    modules = json.loads(python("-c", f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"))
    return {name.partition(".")[0] for name in modules} & set(HEAVY)


def test_import_contract() -> None:
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_temper_loads_nothing_heavy() -> None:
    assert loaded_by("import temper") == set()


def test_opening_an_artifact_loads_neither_torch_nor_the_runtime() -> None:
    code = "import temper; temper.Artifact; temper.load; import temper.runtimes.onnxruntime, temper.runtimes.openvino"
    assert loaded_by(code) == set()


def test_listing_the_catalog_imports_no_plug() -> None:
    code = "\n".join(
        [
            "from temper.core import catalog",
            "from temper.core.runtime import Runtime",
            "from temper.core.search import Search",
            "from temper.core.solver import Solver",
            "from temper.core.technique import Technique",
            "for kind in (Technique, Runtime, Search, Solver):",
            "    for name in catalog.names(kind):",
            "        assert catalog.summary(kind, name)",
            "import sys",
            "folders = ('temper.techniques.', 'temper.runtimes.', 'temper.search.', 'temper.solvers.')",
            "found = [name for name in sys.modules if name.startswith(folders)]",
            "plugs = [name for name in found if getattr(sys.modules[name], '__path__', None) is None]",
            "assert not plugs, plugs",
        ]
    )
    assert loaded_by(code) == set()


def test_public_names_are_found_when_they_are_used() -> None:
    import temper

    for name in temper.__all__:
        assert getattr(temper, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = temper.nothing


def test_importing_temper_is_quick() -> None:
    if os.getloadavg()[0] > BUSY:
        pytest.skip(f"the machine is too busy to time an import: load {os.getloadavg()[0]:.1f}")
    bare = statistics.median(took("pass") for _ in range(5))
    lean = statistics.median(took("import temper") for _ in range(5))
    assert lean - bare < LEAN_S, f"import temper takes {lean - bare:.2f} s"


def took(code: str) -> float:
    began = time.perf_counter()
    python("-c", code)
    return time.perf_counter() - began
