"""ResNet-20 on JPEG CIFAR-10 as a task: 2,000 of the 10,000 test images for selection, 8,000 for proof."""

import sys
from pathlib import Path

from temper import Task

sys.path.insert(0, str(Path(__file__).parent))
import cifar10


def task() -> Task:
    return _task("ResNet-20, JPEG CIFAR-10", training=False)


def trainable() -> Task:
    """The same with the training images, for techniques that train."""
    return _task("ResNet-20, JPEG CIFAR-10, with training", training=True)


def _task(name: str, *, training: bool) -> Task:
    data = cifar10.data(cifar10.normalized, training=training)
    return Task(lambda: cifar10.trained("resnet20"), data, metric="accuracy", name=name)
