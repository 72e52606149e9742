"""The compiled runtimes: one compilation for both, native code only for those who trust it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper.core import artifact, catalog
from temper.core.artifact import Artifact, load
from temper.core.context import Context
from temper.core.errors import ArtifactError, MissingExtra, TrialError
from temper.core.explanation import Explanation
from temper.core.goal import Conditions
from temper.core.graph import Graph
from temper.core.recipe import Recipe
from temper.core.runtime import Runtime
from temper.core.technique import applied
from temper.graph import inductor
from temper.graph.capture import capture
from temper.graph.inductor_profile import _layers
from temper.graph.sensitivity import layers_of
from temper.hardware.detect import this_host
from temper.measure.load import Service
from temper.pipeline.bench import bench
from temper.pipeline.explain import explain, timed
from temper.pipeline.load import best_services
from temper.pipeline.load import load as offer
from temper.runtimes.torch_compiled import TorchCompiled
from temper.techniques.quantization.post_training import PostTrainingQuantization


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


def test_kernels_are_timed_and_lead_to_their_layers(graph: Graph, tmp_path: Path) -> None:
    plain = made("torch_compiled", graph, tmp_path / "plain")
    inputs = [(np.ones((3, 8), np.float32),)] * 4
    kernels = plain.runtime.profile(plain.folder, graph.schema, 1, inputs)
    (layer,) = timed(layers_of(graph, graph, [], 3), kernels)
    assert layer.seconds is not None
    assert 0 < layer.seconds <= sum(kernel.seconds for kernel in kernels)
    assert layer.precision == "float32"
    counted = Counter(kernel.precision for kernel in kernels)
    assert counted == plain.runtime.executed(plain.folder, graph.schema)


def test_weights_of_other_sizes_are_taken_for_no_layer(graph: Graph) -> None:
    calls = [inductor.LibraryCall(name="linear", precision="int8", weight=shape) for shape in (None, (8, 4))]
    assert _layers(calls, graph) == {1: ("linear",)}
    assert _layers([*calls, calls[1]], graph) == {}
    assert _layers([inductor.LibraryCall(name="linear", precision="int8", weight=(8, 5))], graph) == {}


def test_native_code_says_why_it_has_no_times(graph: Graph, tmp_path: Path) -> None:
    explanation = explain(made("aot_inductor", graph, tmp_path / "native").folder, trust=True)
    assert explanation.kernels == ()
    assert explanation.call_s > 0
    assert "explain one of those" in explanation.untimed
    assert Explanation.from_json(explanation.to_json()) == explanation


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


def test_a_convolution_of_one_channel_runs_beside_integers(tmp_path: Path) -> None:
    """In integers, what it handed on was in disorder: the next layer made chance of it."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
    x = torch.rand(16, 1, 8, 8)
    graph = capture(nn.Sequential(*layers).eval(), ((x[:2],), {}), names=("x",))
    context = Context(runtime=TorchCompiled(), target=this_host(), seed=0, calibration=(x.numpy(),))
    quantized = applied(PostTrainingQuantization(), graph, context)
    compiled = made("torch_compiled", quantized, tmp_path / "compiled")
    with torch.no_grad():
        np.testing.assert_allclose(load(compiled.folder)(x.numpy()), quantized(x)[0].numpy(), atol=1e-5)
    assert TorchCompiled().executed(compiled.folder, graph.schema)["int8"] == 2
