"""An artifact that was altered, truncated or forged is refused before anything in it is used."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from temper import load
from temper.core.errors import ArtifactError
from temper.pipeline.optimize import Result

Manifest = dict[str, Any]


@pytest.fixture
def artifact(run: Result, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(run.artifact.folder, tmp_path / "artifact"))


def model_file(artifact: Path) -> Path:
    return artifact / "model.onnx"


def test_an_untouched_copy_loads(artifact: Path) -> None:
    assert load(artifact).schema.outputs[0].dtype == "float32"


def test_every_flipped_byte_is_seen(artifact: Path) -> None:
    file = model_file(artifact)
    good = file.read_bytes()
    for place in (0, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[place] ^= 1
        file.write_bytes(bad)
        with pytest.raises(ArtifactError, match=r"model\.onnx is not the file that was measured"):
            load(artifact)


@pytest.mark.parametrize("name", ["model.onnx", "proof.json", "run.py"])
def test_a_truncated_file(artifact: Path, name: str) -> None:
    os.truncate(artifact / name, (artifact / name).stat().st_size - 1)
    with pytest.raises(ArtifactError, match=f"{name} is not the file that was measured"):
        load(artifact)


@pytest.mark.parametrize("name", ["model.onnx", "proof.json", "run.py"])
def test_a_missing_file(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        load(artifact)


def test_a_missing_manifest(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="holds no artifact"):
        load(artifact)


def test_files_outside_of_the_folder(artifact: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(model_file(artifact).read_bytes())
    digest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["files"]["model.onnx"]
    for name in ("../outside", str(outside), "sub/../../outside"):
        rewrite(artifact, lambda manifest, name=name: manifest["files"].update({name: digest}))
        with pytest.raises(ArtifactError, match="outside of its folder"):
            load(artifact)
        rewrite(artifact, lambda manifest, name=name: manifest["files"].pop(name))
    load(artifact)


def test_a_link_that_leaves_the_folder(artifact: Path, tmp_path: Path) -> None:
    outside = model_file(artifact).rename(tmp_path / "outside")
    model_file(artifact).symlink_to(outside)
    with pytest.raises(ArtifactError, match="outside of its folder"):
        load(artifact)


def test_a_model_that_the_manifest_does_not_vouch_for(artifact: Path) -> None:
    """Leaving the model out of the list must not get it past the check."""
    rewrite(artifact, lambda manifest: manifest["files"].pop("model.onnx"))
    with pytest.raises(ArtifactError, match="names no model"):
        load(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"format": 1}', "\xff\xfe"])
def test_a_manifest_that_is_none(artifact: Path, text: str) -> None:
    (artifact / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"manifest\.json.* is damaged"):
        load(artifact)


def test_a_format_from_the_future(artifact: Path) -> None:
    rewrite(artifact, lambda manifest: manifest.update(format=99))
    with pytest.raises(ArtifactError, match=r"format 99.*pip install -U temper-ml"):
        load(artifact)


SPOILT: dict[str, Callable[[Manifest], object]] = {
    **{f"no {key}": lambda manifest, key=key: manifest.pop(key) for key in ("format", "schema", "runtime", "files")},
    **{f"no {key}": lambda manifest, key=key: manifest.pop(key) for key in ("conditions", "recipe", "environment")},
    "format is text": lambda manifest: manifest.update(format="one"),
    "files is a list": lambda manifest: manifest.update(files=["model.onnx"]),
    "a digest is a number": lambda manifest: manifest["files"].update({"model.onnx": 7}),
    "schema is a list": lambda manifest: manifest.update(schema=[]),
    "inputs is a number": lambda manifest: manifest["schema"].update(inputs=3),
    "a shape is text": lambda manifest: manifest["schema"]["inputs"][0].update(shape="wide"),
    "a dtype is none": lambda manifest: manifest["schema"]["inputs"][0].update(dtype="float99"),
    "nesting is unknown": lambda manifest: manifest["schema"].update(nesting="pile"),
    "no outputs": lambda manifest: manifest["schema"].update(outputs=[]),
    "runtime is text": lambda manifest: manifest.update(runtime="onnxruntime"),
    "runtime is unknown": lambda manifest: manifest["runtime"].update(name="abacus"),
    "runtime leaves its folder": lambda manifest: manifest["runtime"].update(name="..core.artifact"),
    "unknown knob": lambda manifest: manifest["runtime"].update(warp=9),
    "knob of a wrong type": lambda manifest: manifest["runtime"].update(optimization=3),
    "conditions is a list": lambda manifest: manifest.update(conditions=[1, 1]),
    "threads is text": lambda manifest: manifest["conditions"].update(threads="many"),
    "threads is zero": lambda manifest: manifest["conditions"].update(threads=0),
    "recipe is text": lambda manifest: manifest.update(recipe="best"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_fields(artifact: Path, name: str) -> None:
    rewrite(artifact, SPOILT[name])
    with pytest.raises(ArtifactError) as caught:
        load(artifact)
    assert str(artifact) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(artifact: Path, run: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert not [file for file in run.folder.rglob("*") if file.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin")]
    for folder in (artifact, run.folder / "baseline"):
        load(folder)


def rewrite(artifact: Path, change: Callable[[Manifest], object]) -> None:
    file = artifact / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")
