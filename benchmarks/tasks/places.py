"""Where the data lies (`TEMPER_DATA`), and where what was made from it is kept (`TEMPER_CACHE`)."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TEMPER_DATA", REPOSITORY.parent / "shared" / "data"))
CACHE = Path(os.environ.get("TEMPER_CACHE", Path.home() / ".cache" / "temper"))


def kept(name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The arrays that `make` returns, made once and read from the cache (mapped, not copied) ever after."""
    folder = CACHE / name
    if not folder.exists():
        unfinished = CACHE / f"{name}-{os.getpid()}.tmp"
        unfinished.mkdir(parents=True)
        for key, array in make().items():
            np.save(unfinished / f"{key}.npy", array)
        unfinished.rename(folder)
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
