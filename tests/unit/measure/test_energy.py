import math
from pathlib import Path

import pytest

from temper.core.measurement import Measurement
from temper.measure.energy import EnergyCounters


def package(root: Path, name: str, energy: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_without_counters_it_is_unavailable_and_survives_json(tmp_path: Path) -> None:
    measured = EnergyCounters.find(tmp_path).measure(lambda: 1)
    assert measured.status == "unavailable"
    assert "RAPL" in measured.details["reason"]
    again = Measurement.from_json(measured.to_json())
    assert math.isnan(again.value)
    assert measured.to_json()["value"] is None


def test_packages_are_summed_and_wrap_around(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 0), package(tmp_path, "intel-rapl:1", 900_000)
    package(tmp_path, "intel-rapl:0:0", 5)  # a part of the first package, which would count twice

    def block() -> int:
        for folder, spent in ((first, 200_000), (second, 300_000)):
            counted = int((folder / "energy_uj").read_text())
            (folder / "energy_uj").write_text(str((counted + spent) % 1_000_000))
        return 10

    counters = EnergyCounters.find(tmp_path)
    assert counters.packages == (first, second)
    assert counters.measure(block).value == pytest.approx(0.05)
