"""The lease of cores: who waits is told so, and a lock in a folder for everybody is opened with care."""

import subprocess
import sys
from pathlib import Path

import pytest

from temper.core.errors import HostError
from temper.hardware import cores

HOLDER = """
import sys, time
from temper.hardware.cores import lease
with lease(1):
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_who_waits_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cores, "PATIENCE_S", 0.2)
    with subprocess.Popen([sys.executable, "-c", HOLDER, "1"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with cores.lease(1) as held:
            assert held == cores.available()[-1:]
            assert holder.wait(5) == 0
    assert capsys.readouterr().err == "waiting for another measurement on this machine to end\n"


def test_a_free_lease_is_quiet_and_can_be_had_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with cores.lease(1):
            pass
    (lock,) = place.iterdir()
    assert lock.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == ""


def test_a_link_in_the_place_of_the_lock_is_not_followed(place: Path) -> None:
    precious = place / "precious"
    precious.write_text("kept")
    cores._lock_file().symlink_to(precious)
    with pytest.raises(HostError, match="Remove it"), cores.lease(1):
        pass
    assert precious.read_text() == "kept"


def test_the_common_folder_where_the_user_has_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores._lock_file().parent == place
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "nothing"))
    monkeypatch.setattr(cores.tempfile, "gettempdir", lambda: "/common")
    assert cores._lock_file().parent == Path("/common")
