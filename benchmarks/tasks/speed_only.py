"""ResNet-18, MobileNetV2 and ViT-tiny with random weights as tasks: they say something about speed alone.

The batch norms of the random networks are given the statistics of real images, so that activations have the ranges of
a trained network. A quality there is not; the metric is the cosine between the logits and those of the original.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from temper import Data, Task

sys.path.insert(0, str(Path(__file__).parent))
import architectures
from cifar10 import normalized
from photographs import views
from places import kept

SIZE = 224
CALIBRATION, SELECTION, PROOF = 256, 100, 200
STATISTICS = 32


def resnet18() -> Task:
    return _task("ResNet-18, random weights", architectures.resnet18)


def mobilenet_v2() -> Task:
    return _task("MobileNetV2, random weights", architectures.mobilenet_v2)


def vit_tiny() -> Task:
    return _task("ViT-tiny, random weights", architectures.vit_tiny)


def _task(name: str, architecture: Callable[[], nn.Module]) -> Task:
    pixels = _pixels()
    parts = np.split(pixels, np.cumsum([CALIBRATION, SELECTION]))
    data = Data(**dict(zip(("calibration", "selection", "proof"), map(normalized, parts))))
    return Task(lambda: _random(architecture, pixels[:STATISTICS]), data, metric="cosine", name=name)


def _pixels() -> np.ndarray:
    count = CALIBRATION + SELECTION + PROOF
    return kept("views224", lambda: {"pixels": views(count, (SIZE, SIZE), scale=(0.1, 1.0), seed=1)})["pixels"]


def _random(architecture: Callable[[], nn.Module], pixels: np.ndarray) -> nn.Module:
    """Random weights, and batch norms that hold the statistics of these images at their place in the network."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = architecture().train()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
        if norms:
            model(torch.from_numpy(normalized(pixels)))
    return model.eval()
