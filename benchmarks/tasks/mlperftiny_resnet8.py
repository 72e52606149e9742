"""The ResNet-8 of MLPerf Tiny as it was published, on JPEG CIFAR-10: 2,000 test images for selection, 8,000 for proof.

The weights were trained on the lossless images; nothing is fine-tuned, so it scores less here than the 87 % published.
What is judged is the difference to itself. Inputs are pixels as they are, 0 to 255.

Reference: Banbury et al. 2021, MLPerf Tiny Benchmark (arXiv 2106.07597).
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper import Task

sys.path.insert(0, str(Path(__file__).parent))
import cifar10
from places import DATA

FILE = DATA / "mlperftiny_resnet8_cifar10.h5"
EPSILON = 1e-3
"""What Keras adds to the variance in a batch norm."""


class Convolution(nn.Conv2d):
    """A convolution padded as TensorFlow's `same`: with stride 2 an even image gets its zeros right and below."""

    def __init__(self, width_in: int, width: int, size: int, stride: int = 1) -> None:
        super().__init__(width_in, width, size, stride, padding=size // 2 if stride == 1 else 0)
        self.before = (0, size - stride, 0, size - stride) if stride < size and stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.before is None else F.pad(x, self.before))


class ResNet8(nn.Module):
    """Three stages of widths 16, 32, 64 with one residual block each; inputs (n, 3, 32, 32), logits (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        three = [(3, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.convolutions = nn.ModuleList(Convolution(wide, width, 3, stride) for wide, width, stride in three)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=EPSILON) for _, width, _ in three)
        self.shortcuts = nn.ModuleList([nn.Identity(), Convolution(16, 32, 1, 2), Convolution(32, 64, 1, 2)])
        self.dense = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self._normed(0, x))
        for stage, shortcut in enumerate(self.shortcuts):
            y = self._normed(2 * stage + 2, F.relu(self._normed(2 * stage + 1, x)))
            x = F.relu(shortcut(x) + y)
        return self.dense(x.mean((2, 3)))

    def _normed(self, index: int, x: Tensor) -> Tensor:
        return self.norms[index](self.convolutions[index](x))


def published() -> ResNet8:
    """The published weights, read from the Keras file; without the softmax at its end."""
    import h5py

    model = ResNet8()
    # In the file's order of convolutions, shortcuts stand after the second convolution of their stage.
    convolutions = [*model.convolutions[:5], model.shortcuts[1], *model.convolutions[5:], model.shortcuts[2]]
    with h5py.File(FILE) as file, torch.no_grad():
        stored = file["model_weights"]

        def read(layer: str, weight: str) -> Tensor:
            return torch.from_numpy(stored[layer][layer][f"{weight}:0"][()])

        for number, convolution in enumerate(convolutions):
            name = "conv2d" + (f"_{number}" if number else "")
            convolution.weight.copy_(read(name, "kernel").permute(3, 2, 0, 1))
            convolution.bias.copy_(read(name, "bias"))
        for number, norm in enumerate(model.norms):
            name = "batch_normalization" + (f"_{number}" if number else "")
            norm.weight.copy_(read(name, "gamma"))
            norm.bias.copy_(read(name, "beta"))
            norm.running_mean.copy_(read(name, "moving_mean"))
            norm.running_var.copy_(read(name, "moving_variance"))
        model.dense.weight.copy_(read("dense", "kernel").T)
        model.dense.bias.copy_(read("dense", "bias"))
    return model.eval()


def task() -> Task:
    return Task(
        published, cifar10.data(lambda pixels: pixels.astype("float32")), metric="accuracy", name="MLPerf Tiny ResNet-8"
    )
