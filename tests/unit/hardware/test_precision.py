"""The float types that are tried: one that hangs costs its limit of time and nothing else, and is never proposed."""

import sys
from pathlib import Path

import pytest

from temper.core.target import Target, multiplies
from temper.hardware import precision

HANGS = "import time; print('float32 matmul 1e9', flush=True); time.sleep(60)"
KILLED = "import signal, time; print('float32 matmul 1e9', flush=True); signal.alarm(1); time.sleep(60)"


def target(**rates: float) -> Target:
    precisions = {kind: {"matmul": rate} for kind, rate in rates.items()}
    return Target(
        processor="", cores=1, memory_bytes=1, features=(), system="", versions={}, runtimes=(), precisions=precisions
    )


@pytest.mark.parametrize("code", [HANGS, KILLED])
def test_what_was_measured_before_a_type_hangs_is_kept(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "START_S", 3.0)
    assert precision.probed((sys.executable, "-c", code)) == {"float32": {"matmul": 1e9}}


def test_a_machine_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    rates = {"float32": {"matmul": 1e9}}
    monkeypatch.setattr(precision, "probed", lambda: rates)
    assert precision.precisions() == rates
    monkeypatch.setattr(precision, "probed", lambda: pytest.fail("tried twice"))
    assert precision.precisions() == rates


def test_a_failure_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "probed", dict)
    assert precision.precisions() == {}
    monkeypatch.setattr(precision, "probed", lambda: {"float32": {"matmul": 1e9}})
    assert precision.precisions()


def test_rates_are_those_of_operations() -> None:
    calls = []
    rate = precision._rate(lambda: calls.append(sum(range(20_000))), operations=1000)
    assert 1000 / 1.0 < rate < 1000 / 1e-6
    assert len(calls) > precision.BLOCKS


def test_only_clearly_faster_types_are_fast() -> None:
    host = target(float32=100e9, bfloat16=200e9, float16=110e9)
    assert [host.is_fast(kind) for kind in ("float32", "bfloat16", "float16", "float8")] == [True, True, False, False]
    assert target().is_fast("float32")
    assert not target().is_fast("bfloat16")


def test_a_target_keeps_them() -> None:
    host = target(float32=100e9)
    assert Target.from_json(host.to_json()) == host
    assert multiplies(host.precisions) == "float32 100 (matmul) GFLOP/s"
    assert "unknown" in multiplies({})
