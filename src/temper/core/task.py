"""A task: a trained model, its data and the metric that judges it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from temper.core.data import Data, Source
from temper.core.errors import TaskError
from temper.core.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor, nn

    Model = nn.Module | Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxFile:
    """A trained model as an ONNX file; `constants` are inputs that have one value for ever, by name."""

    path: Path
    constants: Mapping[str, Any] = field(default_factory=dict)
    dynamic_batch: bool = True

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be optimized: the model, or a function without arguments that returns it, data and metric.

    A model that is an ONNX file comes through `Task.from_onnx`. `metric` is the name of one, a torchmetrics metric, a
    function `(outputs, targets) -> scores`, or a `Metric`. `loss`, which is only needed to train, is "cross_entropy",
    "mse", or a function `(outputs, targets)` on tensors; metrics of classification have one of their own.
    `source` is the `file.py:name` that the task was loaded from, with which another process can rebuild it.

    Raises: TaskError if the model is neither a module nor such a function, or there is no data.
    """

    model: "Model | OnnxFile"
    data: Data | Source
    metric: str | Metric | Any = "accuracy"
    _: KW_ONLY
    loss: "str | Callable[..., Tensor] | None" = None
    name: str = ""
    source: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, OnnxFile):
            if not self.model.path.is_file():
                raise TaskError(
                    f"there is no file {self.model.path.absolute()}. A relative path counts from the current folder; "
                    'in a task file, write Path(__file__).parent / "model.onnx"'
                )
        elif inspect.isclass(self.model):
            raise TaskError(
                f"the task's model is the class {self.model.__name__}, which holds no trained weights; give an "
                "instance with its weights loaded, or a function without arguments that returns one"
            )
        elif not callable(self.model):
            raise TaskError(
                f"the task's model is {_kind(self.model)}; give a torch.nn.Module, or a function without arguments "
                "that returns one"
            )
        if self.data is None:
            raise TaskError("the task has no data; give Data(...), or one source of examples, which temper splits")

    @classmethod
    def from_onnx(
        cls,
        file: Path | str,
        data: Data | Source,
        metric: str | Metric | Any = "agreement",
        *,
        constants: Mapping[str, Any] | None = None,
        dynamic_batch: bool = True,
        name: str = "",
    ) -> Self:
        """A task whose model is an ONNX file, as it is.

        `data` holds the file's inputs, by name (a dict) or in the file's order, the examples along the first axis, also
        where the file counts them along another one. `constants` gives inputs that are the same in every call, such as
        a sampling rate; the artifact does not have them any more. Without `dynamic_batch` the artifact takes the batch
        that is measured and no other, so that what the file computes from its batch can be folded away. Without targets
        the metric is the agreement with the original: how much of what its outputs vary by is reproduced.

        Raises: TaskError if there is no such file or no data.
        """
        model = OnnxFile(path=Path(file).expanduser(), constants=constants or {}, dynamic_batch=dynamic_batch)
        return cls(model, data, metric, name=name or model.name)

    def module(self) -> "nn.Module":
        """The model itself; a function is called once, and its result kept.

        Raises: TaskError if the function fails or returns something else, or if the model is an ONNX file.
        """
        return self._module

    @cached_property
    def _module(self) -> "nn.Module":
        from torch import nn

        if isinstance(self.model, nn.Module):
            return self.model
        if isinstance(self.model, OnnxFile):
            raise TaskError(f"the task's model is the ONNX file {self.model.path}, which is no torch module")
        called = getattr(self.model, "__name__", _kind(self.model))
        try:
            module = self.model()
        except Exception as error:
            raise TaskError(
                f"the task's model function {called} failed: {type(error).__name__}: {error}. It is called without "
                "arguments and must return a torch.nn.Module"
            ) from error
        if not isinstance(module, nn.Module):
            raise TaskError(
                f"the task's model function {called} returned {_kind(module)}; it must return a torch.nn.Module"
            )
        return module


def _kind(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
