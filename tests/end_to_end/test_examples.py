"""Every example, from its task to an artifact that loads and answers."""

from pathlib import Path

import numpy as np
import pytest

from temper import Artifact
from temper.core.artifact import example_inputs
from temper.hardware import cores
from tests.end_to_end.conftest import temper

FILES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_ends_in_an_artifact_that_answers(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files that an example makes are made anew, and the lease of cores stays where other processes look for it.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(cores._lock_file().parent))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    out = tmp_path / "run"
    goal = ("--minimize", "size", "--max-drop", "0.02")
    done = temper("optimize", f"{file}:task", "--out", out, *goal, "--trials", 2, "--runtimes", "onnxruntime")
    assert done.code == 0, done
    artifact = Artifact.open(out)
    outputs = artifact.load()(*example_inputs(artifact.schema, 3))
    assert isinstance(outputs, np.ndarray)
    (spec,) = artifact.schema.outputs
    assert outputs.shape == (3, *spec.shape[1:])
    assert np.isfinite(outputs).all()
