"""An ONNX task: a file without its training code and without labels, so quality is agreement with the file itself.

    temper optimize examples/onnx_file.py:task --out run-onnx --max-drop 0.02 --budget 3m

The file is exported here, from the network of vision.py, when there is none yet; put a file of your own in its place.
"""

import tempfile
from pathlib import Path

import torch
from vision import digits, network

from temper import Data, Task

FILE = Path(tempfile.gettempdir()) / "digits.onnx"


def task() -> Task:
    """All 1,797 images, without their labels, which temper splits itself."""
    if not FILE.exists():
        example, batch = torch.zeros(2, 1, 8, 8), torch.export.Dim.DYNAMIC
        torch.onnx.export(network(), (example,), FILE, dynamo=True, dynamic_shapes=({0: batch},), external_data=False)
    images, _ = digits()
    return Task.from_onnx(FILE, Data(images), name="digits, as ONNX")
