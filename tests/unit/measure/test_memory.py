from pathlib import Path

import torch
from torch import nn

from temper.core import artifact
from temper.core.goal import Conditions
from temper.measure.memory import peak_memory
from temper.runtimes.onnxruntime import OnnxRuntime
from tests.models import graph_of


def weighed(folder: Path, model: nn.Module) -> tuple[float, float, float]:
    folder.mkdir()
    runtime, conditions = OnnxRuntime(), Conditions()
    graph = graph_of(model, torch.zeros(2, 64))
    runtime.export(graph, folder)
    artifact.write(
        folder, schema=graph.schema, runtime=runtime, conditions=conditions, recipe={"techniques": []}, environment={}
    )
    peak = peak_memory(folder, [], conditions, log=folder.with_suffix(".log"), memory_bytes=2**32)
    assert peak.details == {"interval": "extremes of 3 processes"}
    assert peak.confidence == 0.75, "so often do the extremes of three enclose the median"
    return peak.lower, peak.value, peak.upper


def test_weights_weigh(tmp_path: Path) -> None:
    """40 MB of weights show in the peak of a process, and what a process costs anyway is not counted twice."""
    small, large = weighed(tmp_path / "small", nn.Linear(64, 4)), weighed(tmp_path / "large", nn.Linear(64, 160_000))
    assert list(small) == sorted(small)
    assert 15e6 < small[1] < 400e6, "a process with ONNX Runtime and NumPy, without torch"
    assert 35e6 < large[1] - small[1] < 200e6
