"""MiniLM on SST-2 as two tasks: sentences at their natural length, and padded to 128 tokens.

512 training sentences for calibration, the 872 of `dev` for selection, the 1,821 of `test` for proof.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from temper import Data, Task

sys.path.insert(0, str(Path(__file__).parent))
import minilm

CALIBRATION = 512
Rows = list[NDArray[np.int64]]
Source = Callable[[Rows, NDArray[np.int64]], Any]


class Sentences(Dataset[dict[str, NDArray[np.int64]]]):
    """One sentence an item, as long as it is."""

    def __init__(self, rows: Rows, labels: NDArray[np.int64]) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        row = self.rows[index]
        return {"input_ids": row, "attention_mask": np.ones_like(row), "labels": self.labels[index]}


def natural() -> Task:
    return _task("MiniLM, SST-2, natural length", Sentences)


def padded128() -> Task:
    def source(rows: Rows, labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        return {**minilm.padded(rows, minilm.LONGEST), "labels": labels}

    return _task("MiniLM, SST-2, 128 tokens", source)


def trainable() -> Task:
    """Sentences at their natural length, with the other 6,408 training sentences for techniques that train."""
    return _task("MiniLM, SST-2, natural length, with training", Sentences, training=True)


def _task(name: str, source: Source, *, training: bool = False) -> Task:
    parts = {part: minilm.sentences(part) for part in ("train", "dev", "test")}
    everything = np.arange(len(parts["train"][0]))
    chosen = np.random.default_rng(0).choice(len(everything), CALIBRATION, replace=False)
    parts["rest"] = _chosen(*parts["train"], np.setdiff1d(everything, chosen))
    parts["train"] = _chosen(*parts["train"], chosen)
    held = {part: source(minilm.tokens(texts), labels) for part, (texts, labels) in parts.items()}
    data = Data(
        calibration=held["train"],
        training=held["rest"] if training else None,
        selection=held["dev"],
        proof=held["test"],
    )
    return Task(minilm.trained, data, metric="accuracy", name=name)


def _chosen(
    texts: Sequence[str], labels: NDArray[np.int64], indices: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64]]:
    return [texts[index] for index in indices], labels[indices]
