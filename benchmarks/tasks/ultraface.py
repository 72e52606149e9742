"""UltraFace, a face detector that comes as an ONNX file: views of photographs, judged by agreement with the original.

There are no labels. Each view is one example; its score says how well the faces that are found match those which the
original model finds in it.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from temper import Data, Metric, Task
from temper.core.schema import Outputs

sys.path.insert(0, str(Path(__file__).parent))
from photographs import FACES, views
from places import kept

MODEL = FACES.parent / "ultraface_rfb320.onnx"
SIZE = (240, 320)
CALIBRATION, SELECTION, PROOF = 300, 500, 1500
CONFIDENT, OVERLAPPING, SAME = 0.7, 0.3, 0.5
"""The least probability of a face; the overlap from which the lesser of two is dropped, and two are the same face."""


def agreement(outputs: Outputs, original: Outputs) -> NDArray[np.float64]:
    """F1 between the faces found and those that the original finds, for each image, (n,); 1 where neither finds any.

    Outputs are the probabilities (n, boxes, 2), background first, and the boxes (n, boxes, 4) as left, top, right,
    bottom in shares of the image.
    """
    return np.asarray([_f1(faces(*one), faces(*other)) for one, other in zip(_rows(outputs), _rows(original))])


def faces(probabilities: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """The boxes of faces, (faces, 4), the most certain first, each overlapping none before it."""
    sure = np.flatnonzero(probabilities[:, 1] > CONFIDENT)
    left = boxes[sure[np.argsort(-probabilities[sure, 1], kind="stable")]]
    found = []
    while len(left):
        found.append(left[0])
        left = left[1:][overlap(left[0], left[1:]) < OVERLAPPING]
    return np.asarray(found, np.float32).reshape(-1, 4)


def overlap(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of a box (4,) with others (n, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return shared / np.maximum(areas - shared, 1e-12)


def _rows(outputs: Outputs) -> list[tuple[NDArray[np.float32], ...]]:
    arrays = tuple(outputs.values()) if isinstance(outputs, dict) else tuple(outputs)
    return list(zip(*arrays))


def _f1(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    if not len(found) and not len(wanted):
        return 1.0
    free, matched = list(wanted), 0
    for box in found:
        overlaps = overlap(box, np.asarray(free)) if free else np.zeros(0)
        if len(overlaps) and overlaps.max() >= SAME:
            free.pop(int(overlaps.argmax()))
            matched += 1
    return 2 * matched / (len(found) + len(wanted))


def scaled(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (pixels.astype(np.float32) - 127) / 128


def examples() -> Data:
    """Views of the photographs with faces, (n, 3, 240, 320); parts share photographs, and no two views are alike."""
    count = CALIBRATION + SELECTION + PROOF
    pixels = kept("ultraface", lambda: {"pixels": views(count, SIZE, scale=(0.15, 1.0), seed=0, faces_only=True)})
    parts = np.split(pixels["pixels"], np.cumsum([CALIBRATION, SELECTION]))
    return Data(**dict(zip(("calibration", "selection", "proof"), map(scaled, parts))))


METRIC = Metric(name="F1 against the original", score=agreement, per_example=True, against="original")


def task() -> Task:
    return Task.from_onnx(MODEL, examples(), METRIC, dynamic_batch=False, name="UltraFace, 320 x 240")
