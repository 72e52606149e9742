"""Unlabelled photographs, and random views of them: as many different natural images as a task needs.

The photographs are those beside the face detector (people, streets, rooms) and the two that scikit-learn ships.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from places import DATA

FACES = DATA / "onnx" / "faces"


@cache
def photographs(*, faces_only: bool = False) -> tuple[Image.Image, ...]:
    """All photographs as RGB, in an order that is always the same."""
    files = sorted(FACES.glob("*.jpg"), key=lambda file: int(file.stem))
    if not faces_only:
        import sklearn.datasets

        files += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    return tuple(Image.open(file).convert("RGB") for file in files)


def views(
    count: int, size: tuple[int, int], *, scale: tuple[float, float], seed: int, faces_only: bool = False
) -> NDArray[np.uint8]:
    """Random crops, (count, 3, *size) uint8: an area of so large a share, mirrored half the time, lit differently.

    `size` is (height, width) in pixels; a crop has its aspect ratio, so that nothing is stretched.
    """
    rng = np.random.default_rng(seed)
    sources = photographs(faces_only=faces_only)
    return np.stack([_view(sources[rng.integers(len(sources))], size, scale, rng) for _ in range(count)])


def _view(
    photograph: Image.Image, size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.uint8]:
    height, width = size
    largest = min(photograph.width / width, photograph.height / height)
    zoom = largest * np.sqrt(rng.uniform(*scale))
    box_width, box_height = zoom * width, zoom * height
    left = rng.uniform(0, photograph.width - box_width)
    top = rng.uniform(0, photograph.height - box_height)
    box = (left, top, left + box_width, top + box_height)
    view = photograph.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    view = ImageEnhance.Brightness(view).enhance(rng.uniform(0.7, 1.3))
    view = ImageEnhance.Contrast(view).enhance(rng.uniform(0.8, 1.2))
    return np.asarray(view).transpose(2, 0, 1)
