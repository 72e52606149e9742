"""A task: a trained model, its data and the metric that judges it."""

import inspect
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from temper.core.data import Data, Source
from temper.core.errors import TaskError
from temper.core.metric import Metric

if TYPE_CHECKING:
    from torch import nn

    Model = nn.Module | Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be optimized: the model, or a function without arguments that returns it, data and metric.

    `metric` is the name of one, a torchmetrics metric, a function `(outputs, targets) -> scores`, or a `Metric`.
    `source` is the `file.py:name` that the task was loaded from, with which another process can rebuild it.

    Raises: TaskError if the model is neither a module nor such a function, or there is no data.
    """

    model: "Model"
    data: Data | Source
    metric: str | Metric | Any = "accuracy"
    _: KW_ONLY
    name: str = ""
    source: str | None = None

    def __post_init__(self) -> None:
        if inspect.isclass(self.model):
            raise TaskError(
                f"the task's model is the class {self.model.__name__}, which holds no trained weights; give an "
                "instance with its weights loaded, or a function without arguments that returns one"
            )
        if not callable(self.model):
            raise TaskError(
                f"the task's model is {_kind(self.model)}; give a torch.nn.Module, or a function without arguments "
                "that returns one"
            )
        if self.data is None:
            raise TaskError("the task has no data; give Data(...), or one source of examples, which temper splits")

    def module(self) -> "nn.Module":
        """The model itself; a function is called once, and its result kept.

        Raises: TaskError if the function fails or returns something else.
        """
        return self._module

    @cached_property
    def _module(self) -> "nn.Module":
        from torch import nn

        if isinstance(self.model, nn.Module):
            return self.model
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
