"""CIFAR-10 as JPEG files, and the residual networks trained on it, from the folder that `TEMPER_DATA` names."""

import os
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from places import CACHE, DATA
from temper import Data

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CALIBRATION, SELECTION = 512, 2000


def available() -> bool:
    return (DATA / "cifar10_jpeg.npz").exists()


def images(part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (n, 3, 32, 32) uint8 and labels (n,) of the `train` or `test` part, decoded once and cached."""
    cached = CACHE / f"cifar10_jpeg_{part}.npz"
    if not cached.exists():
        pixels, labels = _decode(part)
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = cached.with_name(f"{part}-{os.getpid()}.tmp.npz")
        np.savez(unfinished, pixels=pixels, labels=labels)
        unfinished.replace(cached)
    with np.load(cached) as stored:
        return stored["pixels"], stored["labels"]


def data(prepared: Callable[[NDArray[np.uint8]], NDArray[np.float32]], *, training: bool = False) -> Data:
    """512 training images for calibration, 2,000 of the test images for selection, the other 8,000 for proof.

    With `training`, all training images, flipped and shifted, for training too.
    """
    train, classes = images("train")
    test, labels = images("test")
    order = np.random.default_rng(0).permutation(len(test))
    selection, proof = order[:SELECTION], order[SELECTION:]
    calibration = np.random.default_rng(1).choice(len(train), CALIBRATION, replace=False)
    return Data(
        training=Augmented(train, classes, prepared) if training else None,
        calibration=prepared(train[calibration]),
        selection=(prepared(test[selection]), labels[selection]),
        proof=(prepared(test[proof]), labels[proof]),
    )


class Augmented(Dataset[tuple[NDArray[np.float32], np.int64]]):
    """Images, each time flipped with probability one half and shifted by up to four pixels, zeros coming in.

    PyTorch's own generator decides, which training seeds before each epoch.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        prepared: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    ) -> None:
        self.pixels, self.labels, self.prepared = pixels, labels, prepared

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], np.int64]:
        image = self.prepared(self.pixels[index : index + 1])[0]
        flips, top, left = torch.randint(0, 18, (3,)).tolist()
        image = image[:, :, ::-1] if flips < 9 else image
        top, left = top // 2, left // 2
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        return np.ascontiguousarray(padded[:, top : top + 32, left : left + 32]), self.labels[index]


def normalized(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean = np.asarray(MEAN, np.float32).reshape(1, 3, 1, 1)
    std = np.asarray(STD, np.float32).reshape(1, 3, 1, 1)
    return (pixels.astype(np.float32) / 255 - mean) / std


def _decode(part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    import io

    from PIL import Image

    with np.load(DATA / "cifar10_jpeg.npz") as archive:
        stream, offsets = archive[f"{part}_jpeg"].tobytes(), archive[f"{part}_offsets"]
        labels = archive[f"{part}_labels"].astype(np.int64)
    files = (stream[start:end] for start, end in pairwise(offsets))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels


class Block(nn.Module):
    """Two 3x3 convolutions with the parameter-free shortcut (He et al. 2015, section 4.2, option A)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The CIFAR-10 residual network of 6 n + 2 layers: widths 16, 32, 64 (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))

    @staticmethod
    def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(width_in, width, stride)
        return nn.Sequential(first, *(Block(width, width, 1) for _ in range(blocks - 1)))


def trained(name: str) -> ResNet:
    """`resnet20` or `resnet56`, fine-tuned on the 50,000 JPEG training images (cached), in evaluation mode."""
    model = ResNet({"resnet20": 3, "resnet56": 9}[name])
    cached = CACHE / f"{name}_cifar10_jpeg.safetensors"
    if not cached.exists():
        published = torch.load(DATA / f"{name}_cifar10.th", weights_only=True, map_location="cpu")["state_dict"]
        model.load_state_dict({key.removeprefix("module."): value for key, value in published.items()})
        fine_tune(model, epochs={"resnet20": 4, "resnet56": 2}[name])
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = cached.with_suffix(f".{os.getpid()}.tmp")
        save_file(model.state_dict(), unfinished)
        unfinished.replace(cached)
    model.load_state_dict(load_file(cached))
    return model.eval()


def fine_tune(model: ResNet, epochs: int, batch: int = 128, rate: float = 0.02, seed: int = 0) -> None:
    """Stochastic gradient descent with a cosine schedule, random crops and flips; the last epoch is what stays."""
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = images("train")
    inputs, targets = torch.from_numpy(normalized(pixels)), torch.from_numpy(labels)
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = len(inputs) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for epoch in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        total = 0.0
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            x = augmented(inputs[chosen], changes(batch, generator)).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x).float(), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"fine-tuning: epoch {epoch + 1} of {epochs}, loss {total / steps:.3f}", flush=True)
    model.to(memory_format=torch.contiguous_format)


def changes(n: int, generator: torch.Generator) -> Tensor:
    """How n images are changed: whether each is flipped, and by how much it is shifted down and right; (3, n)."""
    flipped = torch.rand(n, generator=generator) < 0.5
    return torch.cat([flipped[None].long(), torch.randint(0, 9, (2, n), generator=generator)])


def augmented(x: Tensor, changed: Tensor) -> Tensor:
    """Each image flipped, and shifted by up to four pixels, zeros coming in, as its column of `changes` says."""
    n, _, height, width = x.shape
    flipped, top, left = changed
    x = torch.where(flipped.bool()[:, None, None, None], x.flip(3), x)
    padded = F.pad(x, (4, 4, 4, 4))
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    images = torch.arange(n, device=x.device)
    return padded[images[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
