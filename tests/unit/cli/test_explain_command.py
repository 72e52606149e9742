"""What the command prints for an artifact whose runtime gives no times."""

from dataclasses import replace
from pathlib import Path

import pytest

from temper.cli.explain import command
from temper.core.explanation import Explanation, Layer, Quantized
from temper.pipeline import explain

QUANTIZED = Quantized(original_range=(-1, 1), scale_factor=(0.01, 0.01), quantization_error=1e-5, relative_error=1e-5)
LAYER = Layer(
    name="head",
    operator="linear",
    shape=(4, 8),
    node="linear",
    sensitivity=2e-4,
    weight=replace(QUANTIZED, bits=3),
    input=QUANTIZED,
)


def test_without_times_the_reason_and_the_layers_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    explanation = Explanation(call_s=1e-3, kernels=(), layers=(LAYER,), untimed="it keeps no clock: ask another")
    monkeypatch.setattr(explain, "explain", lambda *_, **__: explanation)
    monkeypatch.setenv("COLUMNS", "200")
    command(Path("run"))
    said = capsys.readouterr().out
    assert "one call takes 1.000 ms" in said
    assert "no shares of the time: it keeps no clock: ask another" in said
    assert [word for line in said.splitlines() if line.startswith("head") for word in line.split()][:3] == [
        "head",
        "–",
        "–",
    ]
    assert "2.0e-04" in said
    assert " 3/8 " in said
    assert "-1 to 1" in said
