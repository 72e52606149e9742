import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from temper.core.errors import DataError, HostError, NoEffect, WorkerError
from temper.measure.worker import Worker

CHILD = """
import ctypes, errno, os, sys, time
from temper.core.errors import NoEffect, DataError
from temper.measure.child import serve

def echo(value): return value
def chat():
    print("said on standard output")
    os.write(1, b"said past Python\\n")
    return "quiet"
def environment(name): return os.environ.get(name)
def affinity(): return sorted(os.sched_getaffinity(0))
def sleep(seconds): time.sleep(seconds)
def leave(code): os._exit(code)
def crash():
    print("the last words", file=sys.stderr, flush=True)
    ctypes.string_at(0)
def hoard(): return [bytearray(b"x" * 2**24) for _ in iter(lambda: time.sleep(0.01), 1)]
def refuse(): raise NoEffect("nothing to do")
def doubt(): raise DataError("odd data")
def fill(): raise OSError(errno.ENOSPC, "No space left on device")
def overrun(): raise MemoryError("too much")
def stumble(): raise ValueError("what\\nis this")
def quit(): sys.exit(1)
def unwritable(): return {1, 2}

serve({name: value for name, value in globals().items() if callable(value) and name != "serve"})
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    (tmp_path / "a_child.py").write_text(CHILD, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started: list[Worker] = []

    def start(*, memory_bytes: int = 2**30, **options: object) -> Worker:
        started.append(Worker("a_child", log=tmp_path / "log", memory_bytes=memory_bytes, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_answers_and_what_is_printed(worker: Callable[..., Worker], tmp_path: Path) -> None:
    with worker(threads=3) as child:
        assert child.call("echo", time_s=20, value={"a": [1, None, "ü\n"]}) == {"a": [1, None, "ü\n"]}
        assert len(child.call("echo", time_s=20, value="x" * 3_000_000)) == 3_000_000
        assert child.call("chat", time_s=20) == "quiet"
        assert child.call("environment", time_s=20, name="OMP_NUM_THREADS") == "3"
        assert child.alive
    assert not child.alive
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "said on standard output" in log
    assert "said past Python" in log


def test_cores(worker: Callable[..., Worker]) -> None:
    core = sorted(psutil.Process().cpu_affinity())[-1]
    assert worker(cores=(core,)).call("affinity", time_s=20) == [core]


def test_errors_of_temper_keep_their_kind_and_the_worker_lives(worker: Callable[..., Worker]) -> None:
    child = worker()
    with pytest.raises(NoEffect, match="nothing to do"):
        child.call("refuse", time_s=20)
    with pytest.raises(DataError, match="odd data"):
        child.call("doubt", time_s=20)
    with pytest.raises(HostError, match=r"No space left on device.*--resume"):
        child.call("fill", time_s=20)
    with pytest.raises(WorkerError, match="'overrun' ran out of memory"):
        child.call("overrun", time_s=20)
    with pytest.raises(WorkerError, match="'stumble' failed with ValueError: what"):
        child.call("stumble", time_s=20)
    with pytest.raises(WorkerError, match="SystemExit"):
        child.call("quit", time_s=20)
    assert child.call("echo", time_s=20, value=1) == 1


def test_a_crash_is_told_with_the_last_words(worker: Callable[..., Worker]) -> None:
    with pytest.raises(WorkerError, match=r"killed by signal 11 during 'crash'; its last words: .*the last words"):
        worker().call("crash", time_s=20)
    with pytest.raises(WorkerError, match="ended with exit code 7"):
        worker().call("leave", time_s=20, code=7)


def test_the_message_holds_the_end_of_the_log(worker: Callable[..., Worker], tmp_path: Path) -> None:
    """The log of a verification lies in a folder that is removed, so a path alone would help nobody."""
    child = worker()
    child.call("chat", time_s=20)
    with pytest.raises(WorkerError) as caught:
        child.call("crash", time_s=20)
    (tmp_path / "log").unlink()
    assert "said on standard output" in str(caught.value)
    assert "the last words" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_no_json_costs_the_call_only(worker: Callable[..., Worker]) -> None:
    with pytest.raises(WorkerError):
        worker().call("unwritable", time_s=20)


def test_a_hang_and_a_hoard_are_stopped_and_gone(worker: Callable[..., Worker]) -> None:
    child = worker()
    child.call("echo", time_s=20, value=0)
    began = time.monotonic()
    with pytest.raises(WorkerError, match="limit of 1 s"):
        child.call("sleep", time_s=1, seconds=60)
    assert time.monotonic() - began < 5
    assert not child.alive, "a worker that was stopped must not be used again"
    child = worker(memory_bytes=300 * 2**20)
    with pytest.raises(WorkerError, match="passed its memory limit"):
        child.call("hoard", time_s=30)
    assert not child.alive


def test_a_worker_that_failed_cannot_be_used_again(worker: Callable[..., Worker]) -> None:
    child = worker()
    with pytest.raises(WorkerError):
        child.call("leave", time_s=20, code=0)
    with pytest.raises(WorkerError):
        child.call("echo", time_s=20, value=1)


@pytest.mark.parametrize("busy", [0.0, 60.0])
def test_children_die_with_their_parent(worker: Callable[..., Worker], tmp_path: Path, busy: float) -> None:
    text = f"""
import json, sys, threading
from pathlib import Path
from temper.measure.worker import Worker
child = Worker("a_child", log=Path({str(tmp_path / "log")!r}), memory_bytes=2**30)
child.call("echo", time_s=20, value=1)
print(json.dumps(child._process.pid), flush=True)
child.call("sleep", time_s=100, seconds={busy}) if {busy} else threading.Event().wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(json.loads(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running()


def test_a_command_of_a_dead_parent_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent wrote it and died while the child was still importing, so the child was not told of its death."""
    done = tmp_path / "done"
    text = f"""
import time
from pathlib import Path
time.sleep(0.5)
from temper.measure.child import serve
serve({{"touch": Path({str(done)!r}).touch}})
"""
    child = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin is not None
    child.stdin.write(b'{"command": "touch", "arguments": {}}\n')
    child.stdin.close()
    assert child.wait(20) == 0
    assert not done.exists()
