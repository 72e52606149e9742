"""Ctrl-C: the first ends the search and proves what there is, the second leaves at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from temper.core.journal import Journal
from tests.end_to_end.conftest import environment_with, temper

OPTIONS = ("--minimize", "size", "--max-drop", "0.05", "--trials", "9")


class Running:
    """A running `temper optimize`, whose lines of progress are read as they come."""

    def __init__(self, task_file: Path, out: Path) -> None:
        # A shell that starts a command in the background has it ignore the signal, and so does this.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "temper", "optimize", f"{task_file}:task", "--out", str(out), *OPTIONS],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment_with(None),
            start_new_session=True,
        )
        signal.signal(signal.SIGINT, before)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def wait_for(self, sign: str) -> None:
        patience = time.monotonic() + 120
        while not any(sign in line for line in list(self.lines)):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < patience, self.said
            time.sleep(0.02)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        code = self.process.wait(120)
        self.reader.join(10)
        return code

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)


@pytest.fixture
def running(task_file: Path, tmp_path: Path) -> Iterator[Running]:
    running = Running(task_file, tmp_path / "run")
    yield running
    if running.process.poll() is None:
        os.killpg(running.process.pid, signal.SIGKILL)
    running.process.wait()


def test_once(running: Running, tmp_path: Path) -> None:
    running.wait_for("trial 2:")
    running.interrupt()
    assert running.end() == 0, running.said
    assert "stopping: the best so far will be proven" in running.said
    assert "trial 3:" not in running.said
    shown = temper("show", tmp_path / "run")
    assert shown.code == 0, shown
    assert "verdict: ACCEPT" in shown.out
    assert "Traceback" not in running.said


def test_twice_then_resume(running: Running, task_file: Path, tmp_path: Path) -> None:
    running.wait_for("trial 2:")
    running.interrupt()
    running.wait_for("stopping")
    workers = psutil.Process(running.process.pid).children(recursive=True)
    time.sleep(0.5)
    began = time.monotonic()
    running.interrupt()
    assert running.end() == 130, running.said
    assert time.monotonic() - began < 5
    assert "Traceback" not in running.said
    assert "--resume" in running.said
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    journal = Journal(tmp_path / "run" / "journal.sqlite")
    assert len(journal.trials()) == 1
    assert journal.fact("proof") is None
    journal.close()
    words = ("optimize", f"{task_file}:task", "--out", tmp_path / "run", *OPTIONS[:-1], 2, "--resume")
    done = temper(*words)
    assert done.code == 0, done
    assert "verdict: ACCEPT" in done.out


def test_before_the_first_trial(running: Running, tmp_path: Path) -> None:
    running.wait_for("trial 1:")
    running.interrupt()
    assert running.end() in (2, 130), running.said
    assert "Traceback" not in running.said
    assert "--resume" in running.said
