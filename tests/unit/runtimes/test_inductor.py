"""The compiled runtimes: one compilation for both, native code only for those who trust it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper.core import artifact, catalog
from temper.core.artifact import Artifact, load
from temper.core.errors import ArtifactError, MissingExtra, TrialError
from temper.core.goal import Conditions
from temper.core.graph import Graph
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.graph import inductor
from temper.graph.capture import capture
from temper.measure.load import Service
from temper.pipeline.bench import bench
from temper.pipeline.explain import explain
from temper.pipeline.load import best_services
from temper.pipeline.load import load as offer


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Layer().eval(), ((torch.randn(2, 8),), {}), names=("x",))


def made(name: str, graph: Graph, folder: Path) -> Artifact:
    runtime = catalog.get(Runtime, name)()
    try:
        runtime.require_to_export()
    except MissingExtra as error:
        pytest.skip(str(error))
    folder.mkdir()
    runtime.export(graph, folder)
    recipe = Recipe(runtime=runtime).to_json()
    artifact.write(folder, schema=graph.schema, runtime=runtime, conditions=Conditions(), recipe=recipe, environment={})
    return Artifact.open(folder)


def test_native_code_needs_trust_and_is_compiled_once(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    native = made("aot_inductor", graph, tmp_path / "native")
    with pytest.raises(ArtifactError, match=r"holds native code .* temper.load\(folder, trust=True\), or --trust"):
        load(native.folder)
    monkeypatch.setattr(inductor, "_compile", lambda *_: pytest.fail("compiled twice"))
    plain = made("torch_compiled", graph, tmp_path / "plain")
    x = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)
    (wanted,) = graph(torch.from_numpy(x))
    for model in (load(native.folder, trust=True), load(plain.folder)):
        np.testing.assert_allclose(model(x), wanted.detach().numpy(), atol=1e-6)
    assert set(native.runtime.executed(native.folder, graph.schema)) == {"float32"}


def test_what_cannot_be_compiled_costs_a_trial(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction\nat length")

    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(TrialError, match=r"Inductor cannot compile the graph: RuntimeError: no such instruction$"):
        made("aot_inductor", graph, tmp_path / "native")


def test_without_a_compiler_artifacts_are_loaded_and_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    ahead, here = (catalog.get(Runtime, name) for name in ("aot_inductor", "torch_compiled"))
    ahead.require()
    for check in (ahead.require_to_export, here.require_to_export, here.require):
        with pytest.raises(MissingExtra, match="no-such-compiler"):
            check()


def test_no_command_loads_native_code_unasked(graph: Graph, tmp_path: Path) -> None:
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "model.pt2").write_bytes(b"not to be read")
    runtime = catalog.get(Runtime, "aot_inductor")()
    recipe = Recipe(runtime=runtime).to_json()
    artifact.write(folder, schema=graph.schema, runtime=runtime, conditions=Conditions(), recipe=recipe, environment={})
    name = str(folder)
    for attempt in (
        lambda: explain(folder),
        lambda: bench([name], Conditions(), rounds=5, tell=print),
        lambda: offer([name], Service(), rate=1, duration_s=1, tell=print),
        lambda: best_services(name, p99_s=1, duration_s=1, tell=print),
    ):
        with pytest.raises(ArtifactError, match="holds native code"):
            attempt()
