"""Small models with random weights that the tests share, each with something that breaks careless graph code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.graph import Graph
from temper.graph.capture import capture


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with every norm's weights and statistics drawn anew: ones and zeros would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if "norm" in type(module).__name__.lower() and tensor.is_floating_point():
                    low = 0.5 if name in ("weight", "running_var") else -0.5
                    tensor.uniform_(low, low + 1.0, generator=generator)
    return model


def images(batch: int = 3, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(batch))


def rows(batch: int = 3, width: int = 8) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(batch))


def tokens(batch: int = 3, length: int = 6) -> Tensor:
    return torch.randint(0, Transformer.VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(batch))


def graph_of(model: nn.Module, *inputs: Tensor, **named: Tensor) -> Graph:
    """The captured graph of the model as it is, its inputs named after the keywords or x0, x1, ..."""
    names = [*(f"x{i}" for i in range(len(inputs))), *named]
    return capture(model, (inputs, named), names=names)


_captured: dict[int, Graph] = {}


def example_graph(model: nn.Module, inputs: tuple[Tensor, ...]) -> Graph:
    """A copy of the graph of one of EXAMPLES, each captured once: capture is the slow part of these tests."""
    if id(model) not in _captured:
        _captured[id(model)] = graph_of(model, *inputs)
    return _captured[id(model)].copy()


class Residual(nn.Module):
    """A residual convolutional net: batch norms, an in-place ReLU, a strided shortcut, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.body(x) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Perceptron(nn.Module):
    """Linear, batch norm, dropout, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Transformer(nn.Module):
    """One block with packed qkv, causal attention with dropout, layer norms and a table made under no_grad."""

    VOCABULARY = 11

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(self.VOCABULARY, 16)
        self.norm, self.last_norm = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 16))
        self.dropout = dropout

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        batch, length, width = x.shape
        with torch.no_grad():
            table = torch.sin(torch.arange(length, dtype=torch.float32))[:, None]
        x = x + table
        query, key, value = self.qkv(self.norm(x)).view(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        probability = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, None, probability, True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return self.last_norm(x + self.mlp(x))


class TwoInputs(nn.Module):
    """Takes `a`, `b` and optionally `c`, each with a role of its own, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Mapping[str, Tensor]:
        logits = self.layer(a) - 2 * self.layer(b)
        return {"logits": logits if c is None else logits * c[:, :4], "hidden": a * b}


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class TupleOutput(nn.Module):
    """Returns a named tuple whose second member is a scalar without batch."""

    def forward(self, x: Tensor) -> Pair:
        return Pair(left=x.relu(), right=x.mean())


@dataclass
class Prediction:
    logits: Tensor
    hidden: Tensor | None = None


class DataclassOutput(nn.Module):
    """Returns a dataclass that torch knows nothing of, with a member that is None."""

    def forward(self, x: Tensor) -> Prediction:
        return Prediction(logits=2 * x)


class Grouped(nn.Module):
    """Depthwise, grouped, transposed and one-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 4, 3, groups=2, bias=False)
        self.transposed = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        self.along = nn.Conv1d(6, 3, 5, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transposed(self.grouped(self.depthwise(x)))
        return self.along(x.flatten(2))


class FrozenBackbone(nn.Module):
    """Runs part of itself under `no_grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features.mean((2, 3)))


class WeightStandardized(nn.Module):
    """A convolution whose weight goes through a batch norm without running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        standardized = F.batch_norm(weight.reshape(1, 4, -1), None, None, training=True, momentum=0.0)
        return self.norm(F.conv2d(x, standardized.reshape(weight.shape), self.conv.bias))


class Tied(nn.Module):
    """An embedding whose table is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.output = nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.embedding(ids))


class Recurrent(nn.Module):
    """LSTM with dropout between its layers, then GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 5, 2, batch_first=True, dropout=0.5)
        self.gru = nn.GRU(5, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0]


class Autocast(nn.Module):
    """Computes in bfloat16 inside, so that its graph holds a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.layer(x)
        return y.float()


class DataDependentBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the error must name
            return x
        return -x


class CallsNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))  # the line that the error must name


class FixedBatch(nn.Module):
    """Writes the batch of three into a shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 2, 4).sum(1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


EXAMPLES: Sequence[tuple[nn.Module, tuple[Tensor, ...]]] = (
    (randomized(Residual()), (images(),)),
    (randomized(Perceptron()), (rows(),)),
    (randomized(Transformer()), (tokens(),)),
    (TwoInputs(), (rows(), rows() + 1)),
    (TupleOutput(), (rows(),)),
    (DataclassOutput(), (rows(),)),
    (Grouped(), (images(channels=6),)),
    (randomized(FrozenBackbone()), (images(),)),
    (randomized(WeightStandardized()), (images(),)),
    (Tied(), (tokens(),)),
    (Recurrent(), (torch.randn(3, 2, 8),)),
    (Autocast(), (rows(),)),
)
"""Models that can be captured with a dynamic batch, with example inputs."""


def example_of(kind: type[nn.Module]) -> Graph:
    """A copy of the graph of the example of that class."""
    return next(example_graph(model, inputs) for model, inputs in EXAMPLES if type(model) is kind)


EXAMPLE_NAMES = [type(model).__name__ for model, _ in EXAMPLES]
