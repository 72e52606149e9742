"""ResNet-56 on JPEG CIFAR-10 as a task: 2,000 of the 10,000 test images for selection, 8,000 for proof."""

import sys
from pathlib import Path

from temper import Task

sys.path.insert(0, str(Path(__file__).parent))
import cifar10


def task() -> Task:
    return Task(
        lambda: cifar10.trained("resnet56"),
        cifar10.data(cifar10.normalized),
        metric="accuracy",
        name="ResNet-56, JPEG CIFAR-10",
    )
