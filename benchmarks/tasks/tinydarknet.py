"""Tiny Darknet on ImageNet as a task: all 500 labelled images for proof, unlabelled ones of other origin for the rest.

Half of the unlabelled images are views of photographs, half CIFAR-10 images enlarged from 32 to 224 pixels: the first
have the sharp detail, the second the variety of objects. What stands in for labels in the selection part is the
model's own answer, on images of which it is sure, so that a drop there is the share of sure answers that change (how
sure it is of them is then like how sure it is where it is right on labelled ones).

Reference: Redmon, Tiny Darknet (pjreddie.com/darknet/tiny-darknet).
"""

import io
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from temper import Data, Task

sys.path.insert(0, str(Path(__file__).parent))
import cifar10
from photographs import views
from places import DATA, kept

SIZE = 224
CALIBRATION, SELECTION = 512, 600
POOLED_AFTER = (0, 1, 5, 9)
SURE = 0.5
"""The least probability of an answer that stands in for a label; 355 images of the 600 wanted are found."""


class TinyDarknet(nn.Module):
    """Sixteen convolutions, 1x1 and 3x3 in turn; inputs (n, 3, 224, 224) from 0 to 1, logits (n, 1000)."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        last = len(shapes) - 1
        self.convolutions = nn.ModuleList(
            nn.Conv2d(wide, width, size, padding=size // 2, bias=index == last)
            for index, (width, wide, size, _) in enumerate(shapes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for width, *_ in shapes[:-1])

    def forward(self, x: Tensor) -> Tensor:
        for index, norm in enumerate(self.norms):
            x = F.leaky_relu(norm(self.convolutions[index](x)), 0.1)
            if index in POOLED_AFTER:
                x = F.max_pool2d(x, 2)
        return self.convolutions[-1](x).mean((2, 3))


def trained() -> TinyDarknet:
    with np.load(DATA / "tinydarknet.npz") as stored:
        weights = {name: torch.from_numpy(stored[name]) for name in stored.files}
    count = sum(name.endswith("conv.weight") for name in weights)
    model = TinyDarknet([tuple(weights[f"{index:02}.conv.weight"].shape) for index in range(count)])
    renamed = {}
    for name, value in weights.items():
        index, layer, leaf = name.split(".")
        renamed[f"{'norms' if layer == 'bn' else 'convolutions'}.{int(index)}.{leaf}"] = value
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval()


def labelled() -> dict[str, NDArray[np.generic]]:
    """The 500 images, (500, 3, 224, 224) uint8, and their classes in Darknet's order, which is the model's."""
    with np.load(DATA / "imagenet500.npz") as archive:
        stream, offsets = archive["jpeg"].tobytes(), archive["offsets"]
        labels = archive["darknet_labels"].astype(np.int64)
    files = (stream[start:end] for start, end in pairwise(offsets))
    return {"pixels": np.stack([_resized(Image.open(io.BytesIO(file))) for file in files]), "labels": labels}


def unlabelled() -> dict[str, NDArray[np.generic]]:
    """Calibration images, and selection images with the answers that the model is sure of."""
    train, _ = cifar10.images("train")
    chosen = train[np.random.default_rng(2).choice(len(train), 6 * SELECTION, replace=False)]
    enlarged = np.stack([_resized(Image.fromarray(image.transpose(1, 2, 0))) for image in chosen])
    viewed = views(5 * SELECTION, (SIZE, SIZE), scale=(0.1, 1.0), seed=0)
    half = CALIBRATION // 2
    calibration = np.concatenate([enlarged[:half], viewed[:half]])
    model, pixels, labels = trained(), [], []
    for images in (enlarged[half:], viewed[half:]):
        with torch.inference_mode():
            logits = torch.cat([model(torch.from_numpy(scaled(part))) for part in np.array_split(images, 100)])
        sure = (logits.softmax(1).amax(1) >= SURE).numpy().nonzero()[0][: SELECTION // 2]
        pixels.append(images[sure])
        labels.append(logits.argmax(1).numpy()[sure])
    return {"calibration": calibration, "selection": np.concatenate(pixels), "answers": np.concatenate(labels)}


def scaled(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255)


def _resized(image: Image.Image) -> NDArray[np.uint8]:
    resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


def task() -> Task:
    proof, others = kept("imagenet500", labelled), kept("tinydarknet_unlabelled", unlabelled)
    return Task(
        trained,
        Data(
            calibration=scaled(others["calibration"]),
            selection=(scaled(others["selection"]), others["answers"]),
            proof=(scaled(proof["pixels"]), proof["labels"]),
        ),
        metric="accuracy",
        name="Tiny Darknet, ImageNet",
    )
