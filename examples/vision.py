"""A vision task: a small network that reads handwritten digits, trained when it is first used.

temper optimize examples/vision.py:task --out run-vision --max-drop 0.02 --budget 3m
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from temper import Data, Task

EPOCHS, BATCH, TRAINED_ON, SELECTED_ON = 12, 64, 700, 300


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 images (n, 1, 8, 8) from 0 to 1 and their digits, in random order."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order].reshape(-1, 1, 8, 8) / 16).astype(np.float32), labels[order]


def network() -> nn.Module:
    """A convolutional network, trained for a few seconds."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 10),
    )  # fmt: skip
    images, labels = (torch.from_numpy(each[:TRAINED_ON]) for each in digits())
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(TRAINED_ON).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def task() -> Task:
    """Calibrated on images of the training set, searched on 300 others, and proven on the rest."""
    images, labels = digits()
    chosen = slice(TRAINED_ON, TRAINED_ON + SELECTED_ON)
    rest = slice(TRAINED_ON + SELECTED_ON, None)
    data = Data(
        calibration=images[:200], selection=(images[chosen], labels[chosen]), proof=(images[rest], labels[rest])
    )
    return Task(network, data, metric="accuracy", name="digits")
