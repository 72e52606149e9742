"""Tiny tasks, runs that are shared, and ways to hide packages: what the end-to-end tests stand on."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from temper.cli import main
from temper.core import catalog
from temper.core.goal import Goal
from temper.pipeline import prove
from temper.pipeline.optimize import Result, optimize

GOAL = Goal(minimize="size", max_drop=0.05)
"""Size is counted, not sampled: what ships for it does not depend on how busy the machine is."""

TASK = '''
"""Four clusters in 16 dimensions, and a small network that tells them apart."""

import numpy as np
import torch
from torch import nn

from temper import Data, Task

CLASSES, WIDTH = 4, 16


def clusters(count=1000):
    generator = np.random.default_rng(0)
    centers = 2 * generator.standard_normal((CLASSES, WIDTH))
    labels = generator.integers(0, CLASSES, count)
    points = centers[labels] + generator.standard_normal((count, WIDTH))
    return points.astype(np.float32), labels


def network(hidden=256, seed=0):
    torch.manual_seed(seed)
    points, labels = map(torch.from_numpy, clusters())
    model = nn.Sequential(
        nn.Linear(WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(points[:200]), labels[:200])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def parts(proof=600):
    x, y = clusters()
    return Data(calibration=x[200:264], selection=(x[264:400], y[264:400]), proof=(x[400:][:proof], y[400:][:proof]))


def task():
    return Task(network, parts(), name="clusters")


def few():
    return Task(network, parts(proof=40), name="few clusters")


def other_weights():
    return Task(lambda: network(seed=1), parts(), name="clusters")
'''

HIDE = """
import importlib.machinery

hidden = {names!r}
finder = importlib.machinery.PathFinder
find_spec = finder.find_spec


def find_unless_hidden(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find_spec(name, path, target)


finder.find_spec = staticmethod(find_unless_hidden)
"""

SCRIPTED = '''
"""Proposes the recipes that TEMPER_TEST_RECIPES lists as JSON, in order."""

import json
import os
from dataclasses import dataclass

from temper.core.recipe import Recipe
from temper.core.search import Search, untried


@dataclass(frozen=True, kw_only=True)
class Scripted(Search):
    def propose(self, space, history):
        return untried(map(Recipe.from_json, json.loads(os.environ["TEMPER_TEST_RECIPES"])), history, space)
'''

TECHNIQUE = """
import ctypes
import os
import time
from dataclasses import dataclass

from temper.core.errors import NoEffect
from temper.core.technique import Technique


@dataclass(frozen=True, kw_only=True)
class Broken(Technique):
    def apply(self, graph, context):
        {body}
        return graph
"""

BROKEN = {
    "exits": "os._exit(3)",
    "segfaults": "ctypes.string_at(0)",
    "raises": "raise ValueError('these weights displease me')",
    "refuses": "raise NoEffect('there was nothing to do')",
    "nothing": "pass",
    "sleeps": "time.sleep(3600)",
    "hoards": "hoard = [bytearray(b'x' * 2**24) for _ in iter(lambda: time.sleep(0.01), 1)]",
}
"""Techniques of another distribution, each bad in its own way."""


@pytest.fixture(scope="module", autouse=True)
def no_compiler() -> Iterator[None]:
    """Without one, no runtime compiles for half a minute in runs that test something else; processes inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no compiler for these tests")
        yield


class Done:
    """What a subprocess left: exit code, standard output and standard error."""

    def __init__(self, process: "subprocess.CompletedProcess[str]") -> None:
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def python(*words: Any, path: Path | None = None, cwd: Path | None = None) -> Done:
    """Run this Python with these words, and with `path` before everything else to import from."""
    environment = environment_with(path)
    return Done(
        subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
            cwd=cwd,
            check=False,
        )
    )


def temper(*words: Any, path: Path | None = None, cwd: Path | None = None) -> Done:
    """Run the command in a process of its own."""
    return python("-m", "temper", *words, path=path, cwd=cwd)


def environment_with(path: Path | None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return environment if path is None else {**environment, "PYTHONPATH": str(path)}


def hiding(folder: Path, *names: str) -> Path:
    """A folder for PYTHONPATH with which these packages cannot be imported, as if they were not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(HIDE.format(names=set(names)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("task") / "clusters.py"
    file.write_text(TASK, encoding="utf-8")
    return file


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the command inside of this process, which spares importing torch again."""

    def called(*words: Any) -> Done:
        monkeypatch.setattr(sys, "argv", ["temper", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        held = capsys.readouterr()
        return Done(subprocess.CompletedProcess(words, code, held.out, held.err))

    return called


@pytest.fixture(scope="session")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distribution of somebody else with the techniques of BROKEN and a search that follows a script."""
    root = tmp_path_factory.mktemp("distribution")
    (root / "scripted_search.py").write_text(SCRIPTED, encoding="utf-8")
    for name, body in BROKEN.items():
        (root / f"broken_{name}.py").write_text(TECHNIQUE.format(body=body), encoding="utf-8")
    facts = root / "broken_techniques-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-techniques\nVersion: 1.0\n", encoding="utf-8")
    lines = ["[temper.search]", "scripted = scripted_search:Scripted", "", "[temper.techniques]"]
    lines += [f"broken.{name} = broken_{name}:Broken" for name in BROKEN]
    (facts / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@contextmanager
def installed(distribution: Path) -> Iterator[pytest.MonkeyPatch]:
    """The distribution as if it were installed, here and in the processes that are started meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(distribution)
        patch.setenv("PYTHONPATH", str(distribution), prepend=os.pathsep)
        catalog._entries.cache_clear()
        yield patch
    catalog._entries.cache_clear()


@pytest.fixture
def third_party(distribution: Path) -> Iterator[Path]:
    with installed(distribution):
        yield distribution


@pytest.fixture
def quick_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short measurement of latency, where another objective decides."""
    monkeypatch.setattr(prove, "ROUNDS", 6)
    monkeypatch.setattr(prove, "BLOCK_S", 0.005)


@pytest.fixture(scope="session")
def run(task_file: Path, tmp_path_factory: pytest.TempPathFactory, distribution: Path) -> Result:
    """A finished run that shipped a quantized artifact."""
    out = tmp_path_factory.mktemp("runs") / "run"
    recipes = [recipe(), recipe("quantization.post_training")]
    with installed(distribution) as patch:
        patch.setenv("TEMPER_TEST_RECIPES", json.dumps(recipes))
        return optimize(
            f"{task_file}:task", GOAL, out=out, trials=len(recipes), search="scripted", tell=lambda line: None
        )


def recipe(*techniques: str, runtime: str = "onnxruntime") -> dict[str, Any]:
    """The JSON form of a recipe with default knobs."""
    return {"techniques": [{"name": name} for name in techniques], "runtime": {"name": runtime}}


def script(text: str) -> str:
    return textwrap.dedent(text).lstrip()
