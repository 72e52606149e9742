"""What an artifact takes, returns and refuses; what is done to its files stands in tests/end_to_end."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper.core import artifact
from temper.core.artifact import Artifact, Model, example_inputs, load
from temper.core.errors import ArtifactError, UsageError
from temper.core.goal import Conditions
from temper.core.runtime import Runtime
from temper.graph.capture import capture
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.runtimes.torch_eager import TorchEager

for runtime_name, kind in (("onnxruntime", OnnxRuntime), ("openvino", OpenVino), ("torch_eager", TorchEager)):
    kind.name = runtime_name


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.embedding = nn.Linear(6, 3), nn.Embedding(5, 3)

    def forward(self, values: Tensor, kind: Tensor) -> dict[str, Tensor]:
        logits = self.layer(values) + self.embedding(kind)
        return {"logits": logits, "best": logits.argmax(-1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    inputs = {"values": torch.randn(2, 6), "kind": torch.tensor([1, 4])}
    graph = capture(Pair().eval(), ((), inputs), names=tuple(inputs))
    runtime = OnnxRuntime()
    runtime.export(graph, folder)
    conditions = Conditions(batch=4, threads=1)
    artifact.write(
        folder, schema=graph.schema, runtime=runtime, conditions=conditions, recipe={"a": 1}, environment={"b": 2}
    )
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


def test_what_was_written_is_read(folder: Path) -> None:
    opened = Artifact.open(folder)
    assert (opened.runtime, opened.conditions) == (OnnxRuntime(), Conditions(batch=4, threads=1))
    assert (opened.recipe, opened.environment) == ({"a": 1}, {"b": 2})
    assert set(opened.files) == {"model.onnx", "run.py"}
    assert opened.size_bytes == (folder / "model.onnx").stat().st_size


def test_by_position_and_by_name(model: Model) -> None:
    values, kind = example_inputs(model.schema, 3)
    first = model(values, kind)
    assert {name: (each.shape, each.dtype.name) for name, each in first.items()} == {
        "logits": ((3, 3), "float32"),
        "best": ((3,), "int64"),
    }
    for other in (model(kind=kind, values=values), model(values, kind=kind)):
        assert all(np.array_equal(first[name], other[name]) for name in first)


def test_arrays_of_any_layout(model: Model) -> None:
    values, kind = example_inputs(model.schema, 4)
    expected = model(values, kind)["logits"]
    strided = np.asfortranarray(values)
    padded = np.zeros((4, 12), np.float32)
    padded[:, ::2] = values
    frozen = values.copy()
    frozen.flags.writeable = False
    for given in (strided, padded[:, ::2], values[::-1][::-1], frozen):
        assert np.array_equal(model(given, kind)["logits"], expected)


def test_outputs_belong_to_the_caller(model: Model) -> None:
    values, kind = example_inputs(model.schema, 2)
    first = model(values, kind)["logits"]
    kept = first.copy()
    model(values + 1, kind)
    assert np.array_equal(first, kept)
    first[:] = 0
    assert np.array_equal(model(values, kind)["logits"], kept)


def test_inputs_that_are_refused(model: Model) -> None:
    values, kind = example_inputs(model.schema, 2)
    with pytest.raises(UsageError, match="by name came labels"):
        model(values, labels=kind)
    with pytest.raises(UsageError, match="the model takes 2"):
        model(values)
    with pytest.raises(UsageError, match="'values' is float64"):
        model(values.astype(np.float64), kind)
    with pytest.raises(UsageError, match="disagree on the batch"):
        model(values, kind[:1])


def test_the_script_runs_alone(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-I", folder / "run.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "((4, 3), dtype('float32'))" in done.stdout
    assert len((folder / "run.py").read_text(encoding="utf-8").splitlines()) < 20


class Awkward(nn.Module):
    """Its inputs are called as what a script might call its own."""

    def forward(
        self, options: Tensor, session: Tensor, numpy: Tensor, model: Tensor, HERE: Tensor, onnxruntime: Tensor
    ) -> dict[str, Tensor]:
        return {"sum": options + session + numpy, "product": model * HERE * onnxruntime}


@pytest.mark.parametrize("runtime", [OnnxRuntime(), OpenVino(), TorchEager()], ids=lambda runtime: runtime.name)
def test_names_of_inputs_do_not_clash_in_the_script(runtime: Runtime, tmp_path: Path) -> None:
    pytest.importorskip(runtime.package)
    names = ("options", "session", "numpy", "model", "HERE", "onnxruntime")
    graph = capture(Awkward().eval(), ((), {name: torch.randn(2, 3) for name in names}), names=names)
    runtime.export(graph, tmp_path)
    artifact.write(
        tmp_path, schema=graph.schema, runtime=runtime, conditions=Conditions(batch=4), recipe={}, environment={}
    )
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("((4, 3), dtype('float32'))") == 2


def altered(folder: Path, copy: Path) -> Path:
    return Path(shutil.copytree(folder, copy / "artifact"))


@pytest.mark.parametrize("name", ["model.onnx.data", "sub/model.onnx", "sub/manifest.json", "__pycache__/run.pyc"])
def test_a_file_that_is_not_listed(folder: Path, tmp_path: Path, name: str) -> None:
    copy = altered(folder, tmp_path)
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"anything")
    with pytest.raises(ArtifactError, match=f"{name} is not listed in manifest.json.*Remove the file"):
        load(copy)
    (copy / name).unlink()
    load(copy)


def test_a_link_that_is_not_listed(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path)
    for target in (folder / "model.onnx", folder, tmp_path / "nothing"):
        (copy / "link").symlink_to(target)
        with pytest.raises(ArtifactError, match="link is not listed"):
            load(copy)
        (copy / "link").unlink()


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["files"].update({"model\0.onnx": "0"}),
        lambda manifest: manifest["files"].update({"x" * 5000: "0"}),
        lambda manifest: manifest.update(schema=None),
    ],
)
def test_a_manifest_with_odd_contents(folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    copy = altered(folder, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        load(copy)


def test_json_that_is_nested_too_deeply(folder: Path, tmp_path: Path) -> None:
    copy = altered(folder, tmp_path)
    (copy / "proof.json").write_text("[" * 100_000)
    artifact.seal(copy)
    with pytest.raises(ArtifactError, match=r"proof\.json is damaged"):
        Artifact.open(copy).proof()
    (copy / "manifest.json").write_text('{"format":' + "[" * 100_000)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        load(copy)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no artifact"):
        load(tmp_path)
