import pickle
import sys
from pathlib import Path

import pytest

from temper.core.errors import DataError, TaskError
from temper.pipeline.task_loading import load_task

HEADER = "import numpy as np\nfrom torch import nn\nfrom temper.core.task import Task\nX = np.zeros((9, 3))\n"
TASK = "Task(nn.Linear(3, 2), X)"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file below the header into a folder that is also the current one."""
    monkeypatch.chdir(tmp_path)

    def written(text: str, name: str = "job.py") -> Path:
        file = tmp_path / name
        file.write_text(HEADER + text, encoding="utf-8")
        return file

    return written


def test_a_task_or_a_function_in_a_file(write) -> None:
    file = write(f"mine = {TASK}\ndef made(size=3): return Task(nn.Linear(size, 2), X, name='given')\n")
    task = load_task(f"{file}:mine")
    assert (task.name, task.source) == ("mine", f"{file}:mine")
    assert load_task("job.py:mine").source == f"{file}:mine"
    assert load_task("job.py:made").name == "given"
    assert load_task(task.source).module().in_features == 3


def test_a_module_by_name(write) -> None:
    write(f"mine = {TASK}\n", "job_by_name.py")
    assert load_task("job_by_name:mine").source == "job_by_name:mine"
    del sys.modules["job_by_name"]


def test_neighbours_are_importable_only_meanwhile(write) -> None:
    write("class Net(nn.Linear): pass\n", "neighbour_of_job.py")
    write("def made():\n    from neighbour_of_job import Net\n    return Task(Net(3, 2), X)\n")
    before = list(sys.path)
    assert type(load_task("job.py:made").module()).__name__ == "Net"
    assert sys.path == before
    del sys.modules["neighbour_of_job"]


def test_classes_of_the_file_resolve(write) -> None:
    write("class Net(nn.Linear): pass\nmine = Task(Net(3, 2), X)\n")
    model = load_task("job.py:mine").module()
    assert type(pickle.loads(pickle.dumps(model))) is type(model)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("job.py", "names no task: write file.py:name"),
        ("job.py:", "names no task"),
        (":mine", "names no task"),
        ("gone.py:mine", "there is no file .*gone.py"),
        ("gone.module:mine", "there is no module 'gone'"),
        ("job.py:yours", r"holds no 'yours'; it holds mine, made\(\)"),
        ("job.py:X", "an object of type ndarray, not a Task"),
        ("job.py:Net", "the class Net, not a Task"),
        ("job.py:greedy", "needs the arguments size, depth"),
        ("job.py:wrong", r"wrong\(\) returned an object of type int"),
        ("job.py:broken", r"broken\(\) failed: .*job.py:12: `return 1 / 0`: ZeroDivisionError: division by zero"),
        ("job.py:unfit", "unfit.. failed: .*job.py:15: `return Data"),
    ],
)
def test_what_cannot_be_loaded(write, reference: str, said: str) -> None:
    write(
        f"mine = {TASK}\n"
        "def made(): return mine\n"
        "def greedy(size, depth, width=3): return mine\n"
        "class Net(nn.Linear): pass\n"
        "def wrong(): return 3\n"
        "def broken():\n"
        "    size = 3\n"
        "    return 1 / 0\n"
        "def unfit():\n"
        "    from temper.core.data import Data\n"
        "    return Data(training=X)\n"
    )
    with pytest.raises(TaskError, match=said) as caught:
        load_task(reference)
    assert isinstance(caught.value, DataError) == reference.endswith("unfit")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mine = = 3\n", r"cannot be imported: .*job.py:5: `mine = = 3`: invalid syntax"),
        ("import surely_not_installed\n", "job.py:5: `import surely_not_installed`: ModuleNotFoundError"),
        ("from .net import Net\n", "relative import.*package.module:name"),
        ("raise SystemExit(2)\n", "job.py:5: .*__main__"),
        ("np.zeros('a')\n", "job.py:5: `np.zeros"),
        ("mine = Task(3, X)\n", "job.py:5: .*TaskError: the task's model"),
    ],
)
def test_a_file_that_cannot_be_imported(write, text: str, said: str) -> None:
    write(text)
    before = set(sys.modules)
    with pytest.raises(TaskError, match=said):
        load_task("job.py:mine")
    assert not [name for name in set(sys.modules) - before if name.startswith("temper_task_job")]


def test_a_module_that_lacks_another_is_not_called_missing(write) -> None:
    write("import surely_not_installed\n", "job_that_fails.py")
    with pytest.raises(TaskError, match=r"job_that_fails cannot be imported: .*job_that_fails.py:5"):
        load_task("job_that_fails:mine")
