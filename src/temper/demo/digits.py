"""A small residual network on scikit-learn's handwritten digits, as a temper task.

    temper optimize digits.py:task --out run --max-drop 0.02

The first use trains the network (about half a minute on two cores) and keeps its weights beside this file.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from temper import Data, Task

WEIGHTS = Path(__file__).with_suffix(".safetensors")
TRAINING, SELECTION = 600, 297
EPOCHS, BATCH = 30, 32


class Block(nn.Module):
    """Two convolutions around which the input is carried, as in He et al. 2015."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class DigitNet(nn.Module):
    """Images (batch, 1, 8, 8) to ten logits."""

    def __init__(self, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 images (1797, 1, 8, 8), float32 in 0..1, and their labels, shuffled once."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order].reshape(-1, 1, 8, 8).astype(np.float32) / 16, labels[order]


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> None:
    """Stochastic gradient descent with a cosine schedule; each image is shifted a little every time."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(inputs) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    model.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(inputs), generator=generator)
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
            shifted = inputs[chosen].roll((down, right), (2, 3))
            loss = F.cross_entropy(model(shifted), targets[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        print(f"training: epoch {epoch + 1} of {EPOCHS}, loss {loss.item():.3f}", file=sys.stderr, flush=True)


def network() -> DigitNet:
    """The trained network; trained now if its weights are not there yet."""
    torch.manual_seed(0)
    model = DigitNet()
    if not WEIGHTS.exists():
        images, labels = digits()
        train(model, images[:TRAINING], labels[:TRAINING])
        save_file(model.state_dict(), WEIGHTS)
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def task() -> Task:
    """600 digits were trained on, and 200 of them calibrate; 297 guide the search; 900 are kept for the proof."""
    images, labels = digits()
    start = TRAINING + SELECTION
    return Task(
        network,
        Data(
            calibration=images[:200],
            selection=(images[TRAINING:start], labels[TRAINING:start]),
            proof=(images[start:], labels[start:]),
        ),
        metric="accuracy",
        name="handwritten digits",
    )
