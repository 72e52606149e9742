import os
from pathlib import Path

import numpy as np
import pytest

from temper.core.errors import HostError, UsageError
from temper.pipeline.run_folder import RunFolder, opened


def test_a_new_run_takes_a_new_or_empty_folder(tmp_path: Path) -> None:
    assert opened(tmp_path / "a" / "b", resume=False).root.is_dir()
    assert opened(tmp_path / "a" / "b", resume=False).root.is_dir()


def test_folders_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="is not empty: choose another folder"):
        opened(tmp_path, resume=False)
    with pytest.raises(UsageError, match="choose another folder"):
        opened(tmp_path / "mine", resume=False)
    with pytest.raises(UsageError, match="holds no run to resume"):
        opened(tmp_path, resume=True)
    with pytest.raises(HostError, match="cannot be made"):
        opened(tmp_path / "mine" / "below", resume=False)
    RunFolder(tmp_path).journal.touch()
    with pytest.raises(UsageError, match="add --resume"):
        opened(tmp_path, resume=False)
    assert opened(tmp_path, resume=True).root == tmp_path


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permission bits do not bind root
    with pytest.raises(HostError, match="read-only for this user"):
        opened(tmp_path, resume=False)


def test_arrays_come_back_in_order(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    given = [np.full((2, 1), number) for number in range(12)]
    files = folder.store("proof", "input", given)
    assert [np.load(file).flat[0] for file in files] == list(range(12))
    assert folder.stored("proof", "input") == files
    assert not folder.stored("selection", "input")
    folder.tidy()
    assert not folder.stored("proof", "input")
