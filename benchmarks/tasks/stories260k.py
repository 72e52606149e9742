"""A language model of 260,000 parameters, trained on TinyStories, scored by its perplexity on stories it never saw.

`TEMPER_DATA` names the folder that holds `stories260k/`: the weights and the tokenizer as llama2.c publishes them, and
an excerpt of the validation stories. Examples are windows of a story, of the length that they come in: 32 tokens
that are scored, behind all tokens of the story before them.
"""

import os
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from temper import Data, Task

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TEMPER_DATA", REPOSITORY.parent / "shared" / "data")) / "stories260k"
BEGIN, IGNORED, LONGEST = 1, -100, 512
SCORED = 32
"""Tokens that one example is scored on."""
CALIBRATION, SELECTION = 0.15, 0.25
"""Shares of the stories; the rest is the proof."""

Tokens = NDArray[np.int64]


def available() -> bool:
    return (DATA / "stories260K.bin").exists()


class Block(nn.Module):
    """Attention with rotary positions and shared keys and values, then a gated perceptron, each behind an RMS norm."""

    def __init__(self, width: int, hidden: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.attention_norm, self.feed_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.query = nn.Linear(width, heads * self.size, bias=False)
        self.key = nn.Linear(width, shared * self.size, bias=False)
        self.value = nn.Linear(width, shared * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        y = self.attention_norm(x)
        query = rotated(self._split(self.query(y), self.heads), cosine, sine)
        key = rotated(self._split(self.key(y), self.shared), cosine, sine)
        value = self._split(self.value(y), self.shared)
        key, value = (each.repeat_interleave(self.heads // self.shared, dim=1) for each in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.feed_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(2, (heads, self.size)).transpose(1, 2)


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Neighbouring pairs of channels of x (batch, heads, length, size), turned by the angle of their position.

    Reference: Su et al. 2021, arXiv 2104.09864.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(3)


class Llama(nn.Module):
    """Tokens (batch, length) to the logits of the next one (batch, length, vocabulary), as Touvron et al. 2023."""

    def __init__(self, width: int, hidden: int, layers: int, heads: int, shared: int, words: int, longest: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width, hidden, heads, shared) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        size = width // heads
        angles = torch.arange(longest)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cosine, sine = self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, cosine, sine)
        return F.linear(self.norm(x), self.embedding.weight)


def trained() -> Llama:
    """The published weights (llama2.c, version 0: a header of seven integers, then float32 by kind of tensor)."""
    raw = (DATA / "stories260K.bin").read_bytes()
    width, hidden, layers, heads, shared, words, longest = struct.unpack("7i", raw[:28])
    model = Llama(width, hidden, layers, heads, shared, abs(words), longest)
    numbers, place = np.frombuffer(raw, np.float32, offset=28), 0
    blocks = list(model.blocks)
    kinds = ("attention_norm", "query", "key", "value", "out", "feed_norm", "gate", "down", "up")
    tensors = [model.embedding.weight]
    tensors += [getattr(block, kind).weight for kind in kinds for block in blocks]
    with torch.no_grad():
        for tensor in (*tensors, model.norm.weight):
            stored = numbers[place : place + tensor.numel()].reshape(tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(stored.copy()))
            place += tensor.numel()
    return model.eval()


def vocabulary() -> tuple[list[bytes], list[float]]:
    """The pieces of the tokenizer and their scores: pairs that make a better piece are merged first."""
    raw, place = (DATA / "tok512.bin").read_bytes(), 4
    pieces, scores = [], []
    while place < len(raw):
        score, length = struct.unpack("fi", raw[place : place + 8])
        pieces.append(raw[place + 8 : place + 8 + length])
        scores.append(score)
        place += 8 + length
    return pieces, scores


def encoded(text: str) -> list[int]:
    """The tokens of a text, without the one that begins it: byte-pair merges, best score first."""
    pieces, scores = vocabulary()
    numbers = {piece: number for number, piece in reversed(list(enumerate(pieces)))}
    found = []
    for letter in " " + text:
        piece = letter.encode()
        found += [numbers[piece]] if piece in numbers else [byte + 3 for byte in piece]
    while True:
        pairs = [numbers.get(pieces[a] + pieces[b], -1) for a, b in pairwise(found)]
        best = max(range(len(pairs)), key=lambda i: scores[pairs[i]] if pairs[i] >= 0 else -np.inf, default=-1)
        if best < 0 or pairs[best] < 0:
            return found
        found[best : best + 2] = [pairs[best]]


def stories() -> list[Tokens]:
    """The stories of the excerpt, each cut to its first 512 tokens: what the model was trained on and can take."""
    text = (DATA / "TinyStories-valid.excerpt.txt").read_text(encoding="utf-8")
    return [np.array([BEGIN, *encoded(story)][:LONGEST], np.int64) for story in text.strip().split("\n")]


def distinct(given: list[Tokens]) -> list[Tokens]:
    """The stories but for those that the excerpt repeats, up to the case of the first letter."""
    return [each for i, each in enumerate(given) if not any(np.array_equal(each[-99:], x[-99:]) for x in given[:i])]


def windows(story: Tokens) -> Iterator[tuple[Tokens, Tokens]]:
    """Inputs, and what comes next: the tokens that are scored, -100 before them."""
    for start in range(0, len(story) - 1, SCORED):
        stop = min(start + SCORED, len(story) - 1)
        yield story[:stop], np.concatenate((np.full(start, IGNORED), story[start + 1 : stop + 1]))


def task() -> Task:
    """Stories, not windows, are dealt out to the parts, so that no part knows how another one's stories begin."""
    order = np.random.default_rng(0).permutation(len(told := distinct(stories())))
    places = np.split(order, np.round(np.cumsum((CALIBRATION, SELECTION)) * len(order)).astype(int))
    parts = ([window for place in each for window in windows(told[place])] for each in places)
    calibration, selection, proof = (Windows(part) for part in parts)
    data = Data(calibration=calibration, selection=selection, proof=proof)
    return Task(trained, data, metric="perplexity", name="stories260K, TinyStories")


class Windows:
    """A dataset: one window an item, as long as it is."""

    def __init__(self, items: list[tuple[Tokens, Tokens]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tokens, Tokens]:
        return self.items[index]
