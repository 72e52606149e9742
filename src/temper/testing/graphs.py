"""Four small graphs to try plugs on: random but seeded, with norms and statistics that hide no error.

They differ in what breaks careless code: a residual convolutional net with batch norms, a perceptron with a batch norm
behind a linear layer, an attention block with integer tokens, two inputs and two named outputs, and a network that
writes out by hand, computes at every call and computes twice what fusions find.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.graph import Graph
from temper.core.schema import Array
from temper.graph.capture import capture

CALIBRATION_EXAMPLES = 24
VOCABULARY, LENGTH, WIDTH = 13, 6, 16

Draw = Callable[[np.random.Generator, int], tuple[Array, ...]]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A captured graph, and inputs for it at any batch."""

    name: str
    graph: Graph
    draw: Draw

    def inputs(self, batch: int, seed: int) -> tuple[Array, ...]:
        """Seeded inputs, one array an input, each (batch, ...)."""
        return self.draw(np.random.default_rng(seed), batch)

    @property
    def calibration(self) -> tuple[Array, ...]:
        """Enough inputs to set the ranges of quantizers."""
        return self.inputs(CALIBRATION_EXAMPLES, seed=1)


def examples() -> tuple[Example, ...]:
    """The four graphs with a dynamic batch, in evaluation mode; each call returns copies of its own."""
    return tuple(Example(name=each.name, graph=each.graph.copy(), draw=each.draw) for each in _captured())


class ResidualNet(nn.Module):
    """Two blocks of convolutions with batch norms, one skipped by identity and one by a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.strided = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16))
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = F.relu(x + self.block(x))
        x = F.relu(self.strided(x) + self.shortcut(x))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Perceptron(nn.Module):
    """Linear layers, one followed by a batch norm, with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(12, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, 24),
            nn.GELU(),
            nn.Linear(24, 4),
        )

    def forward(self, row: Tensor) -> Tensor:
        logits: Tensor = self.layers(row)
        return logits


class Attention(nn.Module):
    """One attention block over tokens (batch, 6) with an additive bias for each (batch, 6); returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor, bias: Tensor) -> dict[str, Tensor]:
        x = self.embedding(tokens)
        query, key, value = self.qkv(self.first_norm(x)).reshape(-1, LENGTH, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / (WIDTH // 2) ** 0.5 + bias[:, None, None, :]
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, LENGTH, WIDTH)
        x = x + self.out(mixed)
        x = x + self.feed(self.second_norm(x))
        return {"logits": self.head(x[:, 0]), "hidden": x}


class Handwritten(nn.Module):
    """Attention, GELU and positions as a user may write them: out by hand, at every call, and one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.query, self.key, self.value = nn.Linear(12, WIDTH), nn.Linear(12, WIDTH), nn.Linear(12, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, row: Tensor) -> Tensor:
        steps = torch.arange(1, LENGTH + 1, dtype=torch.float32)[:, None]
        position = torch.sin(self.position * steps)
        query = self.query(row)[:, None] + position
        key = self.key(row)[:, None] * position
        scores = query @ key.transpose(1, 2) / WIDTH**0.5
        value = self.value(row)[:, None] + position
        attended = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])
        mixed = scores.softmax(-1) @ attended[:, 0]
        hidden = 0.5 * mixed * (1 + torch.tanh(0.7978845608 * (mixed + 0.044715 * mixed**3)))
        logits: Tensor = self.head(hidden).mean(1) + torch.tanh(self.head(hidden).mean(1))
        return logits


def randomized(model: nn.Module, seed: int) -> nn.Module:
    """The model with all its weights, and every norm's statistics, drawn anew: ones and zeros would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if not tensor.is_floating_point():
                    continue
                if "Norm" in type(module).__name__:
                    low = 0.5 if name in ("weight", "running_var") else -0.5
                    tensor.uniform_(low, low + 1.0, generator=generator)
                else:
                    deviation = 0.5 if tensor.dim() == 1 else (2 / tensor[0].numel()) ** 0.5
                    tensor.normal_(0.0, deviation, generator=generator)
    return model


@cache
def _captured() -> tuple[Example, ...]:
    return (
        _example("residual", ResidualNet(), ("image",), _images),
        _example("perceptron", Perceptron(), ("row",), _rows),
        _example("attention", Attention(), ("tokens", "bias"), _sentences),
        _example("handwritten", Handwritten(), ("row",), _rows),
    )


def _example(name: str, model: nn.Module, names: tuple[str, ...], draw: Draw) -> Example:
    inputs = tuple(map(torch.from_numpy, draw(np.random.default_rng(0), 2)))
    graph = capture(randomized(model, seed=0), (inputs, {}), names=names)
    return Example(name=name, graph=graph, draw=draw)


def _images(generator: np.random.Generator, batch: int) -> tuple[Array, ...]:
    return (generator.standard_normal((batch, 3, 10, 10), dtype=np.float32),)


def _rows(generator: np.random.Generator, batch: int) -> tuple[Array, ...]:
    return (generator.standard_normal((batch, 12), dtype=np.float32),)


def _sentences(generator: np.random.Generator, batch: int) -> tuple[Array, ...]:
    tokens = generator.integers(0, VOCABULARY, (batch, LENGTH), dtype=np.int64)
    return tokens, generator.standard_normal((batch, LENGTH), dtype=np.float32)
