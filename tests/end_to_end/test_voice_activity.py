"""The voice-activity detector Silero VAD, a file full of branches: it gets its best runtime, and every reason why not.

`TEMPER_DATA` names the folder that holds `onnx/silero_vad.onnx` and a recording.
"""

import os
import wave
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import temper
from temper import Data, Goal, Task
from temper.core import catalog
from temper.core.facts import is_torch
from temper.core.technique import Technique
from temper.pipeline.bookkeeping import inapplicable
from temper.pipeline.optimize import space_of
from temper.pipeline.prepare import prepare
from temper.pipeline.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("TEMPER_DATA", REPOSITORY.parent / "shared" / "data")) / "onnx"
FILE, RECORDING = FOLDER / "silero_vad.onnx", FOLDER / "silero_test.wav"
RATE, CONTEXT, STEP, COUNT = 16000, 64, 512, 240

pytestmark = [
    pytest.mark.skipif(
        not (FILE.exists() and RECORDING.exists()),
        reason=f"there is no {FILE} with {RECORDING.name} beside it; TEMPER_DATA names the folder that holds onnx/",
    ),
    pytest.mark.usefixtures("quick_proof"),
]


@pytest.fixture(scope="module")
def frames() -> Data:
    """Frames of the recording, each with the state that those before it leave: (240, 576) and (240, 2, 128)."""
    with wave.open(str(RECORDING)) as recording:
        samples = np.frombuffer(recording.readframes((COUNT + 1) * STEP), np.int16).astype(np.float32) / 2**15
    session, state = onnxruntime.InferenceSession(FILE), np.zeros((2, 1, 128), np.float32)
    heard = np.stack([samples[start : start + CONTEXT + STEP] for start in range(0, COUNT * STEP, STEP)])
    states = []
    for frame in heard:
        states.append(state[:, 0])
        _, state = session.run(None, {"input": frame[None], "state": state, "sr": np.array(RATE)})
    return Data({"input": heard, "state": np.stack(states)})


def torch_only() -> set[str]:
    techniques = (catalog.get(Technique, name) for name in catalog.names(Technique))
    return {each.name for each in techniques if is_torch in each.needs}


def test_the_best_runtime_and_the_reasons(frames: Data, tmp_path: Path) -> None:
    lines: list[str] = []
    task = Task.from_onnx(FILE, frames, constants={"sr": RATE})
    result = temper.optimize(task, Goal(max_drop=0.05), out=tmp_path / "run", trials=2, tell=lines.append)
    assert result.proof.verdict == "ACCEPT"
    assert result.artifact.runtime.name == "onnxruntime"
    assert not result.artifact.recipe["techniques"]
    assert [str(each) for each in result.artifact.schema.inputs] == [
        "input: float32[batch, 576]",
        "state: float32[batch, 2, 128]",
    ]
    (named,) = [line.removeprefix("not tried: ") for line in lines if "an ONNX file has none" in line]
    assert torch_only() <= set(named.partition(":")[0].split(", "))
    assert named in result.report.read_text(encoding="utf-8").replace("</b>", "")
    # The rate decides the outer branch; those inside OpenVINO cannot convert.
    if any(line == "trial 2: openvino" for line in lines):
        assert any("trial 2: failed" in line and "decide by value what is run" in line for line in lines)


def test_what_a_branch_hides_is_said(frames: Data, tmp_path: Path) -> None:
    """With the rate read from the samples, every product stands in a branch that is chosen while the file runs."""
    model = onnx.load(FILE)
    loudest = helper.make_node("ReduceMax", ["input"], ["loudest"], keepdims=0)
    silence = helper.make_node("Mul", ["loudest", "none"], ["silence"])
    rate = helper.make_node("Add", ["silence", "usual"], ["heard_rate"])
    model.graph.node.insert(0, helper.make_node("Cast", ["heard_rate"], ["sr"], to=onnx.TensorProto.INT64))
    for node in (rate, silence, loudest):
        model.graph.node.insert(0, node)
    for name, value in (("none", 0.0), ("usual", float(RATE))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    model.graph.input.remove(next(each for each in model.graph.input if each.name == "sr"))
    onnx.save(model, tmp_path / "model.onnx")
    task = Task.from_onnx(tmp_path / "model.onnx", frames)
    prepared = prepare(task, Goal(), 0, RunFolder(tmp_path / "run"), lambda line: None)
    space = space_of(prepared, seed=0)
    assert "float weights outside of branches" in inapplicable(space)["quantization.onnx_static"]
