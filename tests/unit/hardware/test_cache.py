"""Files that are made once: processes that want the same one share it, and old ones go."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from temper.core.errors import MissingExtra
from temper.hardware.cache import made_once, user_cache
from temper.hardware.compiler import require_compiler


def test_one_of_many_makes_it(tmp_path: Path) -> None:
    made = []

    def make(file: Path) -> None:
        made.append(file)
        file.write_text("it")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: made_once(tmp_path / "a.bin", make).read_text(), range(8)))
    assert found == ["it"] * 8
    assert len(made) == 1


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(file: Path) -> None:
        file.write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        made_once(tmp_path / "a.bin", fail)
    assert not list(tmp_path.glob("*.bin"))


def test_the_one_unused_for_longest_goes(tmp_path: Path) -> None:
    for age, name in enumerate(("a", "b", "c")):
        made_once(tmp_path / f"{name}.bin", Path.touch, kept=3)
        os.utime(tmp_path / f"{name}.bin", (age, age))
    made_once(tmp_path / "a.bin", Path.touch, kept=3)
    made_once(tmp_path / "d.bin", Path.touch, kept=3)
    assert sorted(file.name for file in tmp_path.glob("*.bin")) == ["a.bin", "c.bin", "d.bin"]


def test_the_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "here"))
    assert user_cache() == tmp_path / "here"
    assert user_cache().is_dir()


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingExtra, match=r"torch_compiled needs a C\+\+ compiler, and 'no-such-compiler'"):
        require_compiler("torch_compiled")
    monkeypatch.setenv("CXX", "true")
    require_compiler("torch_compiled")
