"""ResNet-20 on JPEG CIFAR-10 as a task: 2,000 of the 10,000 test images for selection, 8,000 for proof."""

import sys
from pathlib import Path

import numpy as np

from temper import Data, Task

sys.path.insert(0, str(Path(__file__).parent))
import cifar10

CALIBRATION, SELECTION = 512, 2000


def task() -> Task:
    train, _ = cifar10.images("train")
    test, labels = cifar10.images("test")
    order = np.random.default_rng(0).permutation(len(test))
    selection, proof = order[:SELECTION], order[SELECTION:]
    calibration = np.random.default_rng(1).choice(len(train), CALIBRATION, replace=False)
    return Task(
        lambda: cifar10.trained("resnet20"),
        Data(
            calibration=cifar10.normalized(train[calibration]),
            selection=(cifar10.normalized(test[selection]), labels[selection]),
            proof=(cifar10.normalized(test[proof]), labels[proof]),
        ),
        metric="accuracy",
        name="ResNet-20, JPEG CIFAR-10",
    )
