"""A row's model and examples as files, from which any process can build and run any contestant."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.core.data import Examples
from temper.core.schema import Array

if TYPE_CHECKING:
    import torch

PARTS = ("calibration", "proof")
PER_CHANNEL = 17
"""An opset whose quantization has scales per channel (13 was the first), and that all libraries read."""
FLOAT, ABOUT = "float.onnx", "subject.json"


class Stored:
    """Examples on disk: one array an input, (examples, ...), and where lengths differ, how long each example is."""

    def __init__(self, folder: Path, part: str, axes: Sequence[int | None]) -> None:
        self.inputs = [np.load(folder / f"{part}_{index}.npy", mmap_mode="r") for index in range(len(axes))]
        file = folder / f"{part}_lengths.npy"
        self.lengths = np.load(file) if file.exists() else None
        self.axes = axes

    def __len__(self) -> int:
        return len(self.inputs[0])

    def __getitem__(self, index: int) -> tuple[Array, ...]:
        """The arrays of one example, (1, ...), as long as it is, in memory of their own."""
        return tuple(np.array(self._cut(array[index : index + 1], axis, index)) for array, axis in self._columns())

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        return (self[index] for index in range(len(self)))

    def spread(self, count: int) -> list[tuple[Array, ...]]:
        """So many examples: where lengths differ, the middles of equal shares of their order, else the first ones."""
        if self.lengths is None:
            return [self[index] for index in range(min(count, len(self)))]
        order = np.argsort(self.lengths, kind="stable")
        places = (np.arange(count) + 0.5) / count * len(order)
        return [self[int(order[place])] for place in places.astype(int)]

    def _columns(self) -> Iterator[tuple[Array, int | None]]:
        return zip(self.inputs, self.axes)

    def _cut(self, array: Array, axis: int | None, index: int) -> Array:
        if self.lengths is None or axis is None:
            return array
        return array[(slice(None),) * axis + (slice(int(self.lengths[index])),)]


@dataclass(frozen=True)
class Subject:
    """The folder that holds a row's examples, its float ONNX file and a description."""

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / ABOUT).read_text(encoding="utf-8")))

    @property
    def transformer(self) -> bool:
        return bool(self.about["transformer"])

    @property
    def from_onnx(self) -> bool:
        return bool(self.about["onnx"])

    @property
    def names(self) -> list[str]:
        """What the inputs are called, in the order of the stored arrays."""
        return list(self.about["names"])

    @property
    def varied(self) -> bool:
        """Whether examples differ in length."""
        return any(axis is not None for axis in self.about["axes"])

    @property
    def float_file(self) -> Path:
        return self.folder / FLOAT

    def examples(self, part: str) -> Stored:
        return Stored(self.folder, part, self.about["axes"])

    def calibration(self, most: int) -> list[tuple[Array, ...]]:
        stored = self.examples("calibration")
        return [stored[index] for index in range(min(most, len(stored)))]

    def module(self) -> "torch.nn.Module":
        """The original model, in evaluation mode and without gradients."""
        from temper.pipeline.task_loading import load_task

        module = load_task(self.about["task"]).module().eval()
        return module.requires_grad_(False)

    def tensors(self, example: Sequence[Array]) -> "tuple[torch.Tensor, ...]":
        import torch

        return tuple(torch.from_numpy(array) for array in example)

    def dynamic_shapes(self) -> "tuple[dict[int, Any] | None, ...] | None":
        """What `torch.export` is told: the length is dynamic where examples differ in it, everything else is fixed."""
        import torch

        if not self.varied:
            return None
        longest = max(int(lengths.max()) for part in PARTS if (lengths := self.examples(part).lengths) is not None)
        length = torch.export.Dim("length", min=2, max=longest)
        return tuple({axis: length} if axis is not None else None for axis in self.about["axes"])


def store(folder: Path, part: str, examples: Examples, most: int | None = None) -> None:
    """Write a part of the data, or its first examples, to where `Stored` reads it."""
    for index, array in enumerate(examples.inputs):
        np.save(folder / f"{part}_{index}.npy", array[:most])
    if examples.lengths is not None:
        np.save(folder / f"{part}_lengths.npy", examples.lengths[:most])


def export(subject: Subject) -> None:
    """Write the float ONNX file for batch 1, the length dynamic where examples differ in it.

    A file that came as ONNX is brought to an opset that knows scales per channel, and weights that old exporters list
    as inputs are taken out of that list: the libraries ask for both.
    """
    if subject.from_onnx:
        import onnx
        import onnx.version_converter

        model = onnx.load(subject.about["onnx"])
        if model.opset_import[0].version < PER_CHANNEL:
            model = onnx.version_converter.convert_version(model, PER_CHANNEL)
        weights = {each.name for each in model.graph.initializer}
        inputs = [each for each in model.graph.input if each.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        onnx.save(model, subject.float_file)
        return
    import torch

    example = max(subject.calibration(8), key=lambda arrays: arrays[0].size)
    torch.onnx.export(
        subject.module(),
        subject.tensors(example),
        subject.float_file,
        dynamo=True,
        input_names=subject.names,
        dynamic_shapes=subject.dynamic_shapes(),
        external_data=False,
        verbose=False,
    )
