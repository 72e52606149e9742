"""A text task: from which package of Python's standard library does a docstring come?

    temper optimize examples/text.py:task --out run-text --max-drop 0.02 --budget 3m

The texts are read from the installation itself and stay as long as they are: each is run at its own length.
"""

import ast
import re
import sysconfig
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import nn

from temper import Data, Task

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "urllib", "xml")
VOCABULARY, WIDTH, LONGEST, EPOCHS, BATCH = 8192, 128, 64, 6, 32
Texts = list[np.ndarray]


def docstrings() -> tuple[Texts, np.ndarray]:
    """Token numbers of each docstring, (length,), no two alike, and its package's number, (n,), in random order."""
    texts, labels, seen = [], [], set()
    for label, package in enumerate(PACKAGES):
        for file in sorted((Path(sysconfig.get_path("stdlib")) / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8-sig"))):
                documented = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module))
                words = re.findall(r"\w+", (ast.get_docstring(node) or "").lower()) if documented else []
                numbers = tuple(1 + crc32(word.encode()) % (VOCABULARY - 1) for word in words[:LONGEST])
                if len(words) >= 4 and numbers not in seen:
                    seen.add(numbers)
                    texts.append(np.asarray(numbers, dtype=np.int64))
                    labels.append(label)
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[index] for index in order], np.asarray(labels)[order]


class Classifier(nn.Module):
    """Word vectors, one layer of attention, their mean, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.attention = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(WIDTH, len(PACKAGES))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(self.words(tokens)).mean(1))


def trained(texts: Texts, labels: np.ndarray) -> nn.Module:
    """Adam for a few epochs, on batches of docstrings of like length."""
    torch.manual_seed(0)
    model, generator = Classifier(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    for _ in range(EPOCHS):
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]) + 4 * generator.random())
        batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        for rows in generator.permutation(np.arange(len(batches))):
            shortest = min(len(texts[index]) for index in batches[rows])
            tokens = torch.from_numpy(np.stack([texts[index][:shortest] for index in batches[rows]]))
            loss = nn.functional.cross_entropy(model(tokens), torch.from_numpy(labels[batches[rows]]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def task() -> Task:
    """Half of the docstrings were trained on; of the others, some guide the search and the rest are for the proof."""
    texts, labels = docstrings()
    half, most = len(texts) // 2, len(texts) // 2 + len(texts) // 8
    data = Data(
        calibration=(texts[:256], labels[:256]),
        selection=(texts[half:most], labels[half:most]),
        proof=(texts[most:], labels[most:]),
    )
    return Task(lambda: trained(texts[:half], labels[:half]), data, metric="accuracy", name="docstrings")
