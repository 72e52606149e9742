"""The examples are tasks that load, and their page names each of them."""

from pathlib import Path

import pytest

from temper.core.task import Task
from temper.pipeline.task_loading import load_task

FOLDER = Path(__file__).parents[3] / "examples"
FILES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", ["vision.py", "text.py"])
def test_an_example_is_a_task(name: str) -> None:
    task = load_task(f"{FOLDER / name}:task")
    assert isinstance(task, Task)
    assert task.data.proof is not None


def test_the_page_names_every_example() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert FILES
    assert all(f"[{file.name}]({file.name})" in page for file in FILES)
    assert all(f"examples/{file.name}:task" in file.read_text(encoding="utf-8") for file in FILES)
