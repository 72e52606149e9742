"""temper: the fastest, smallest or most frugal artifact of your model that provably stays within your limit."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from temper.core.artifact import Artifact, load
    from temper.core.data import Data
    from temper.core.goal import Conditions, Goal
    from temper.core.metric import Metric
    from temper.core.recipe import Recipe
    from temper.core.task import Task
    from temper.pipeline.optimize import Result, optimize
    from temper.pipeline.verify import verify
    from temper.techniques.quantization.aware_training import QuantizationAwareTraining

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "temper.core.artifact",
    "Conditions": "temper.core.goal",
    "Data": "temper.core.data",
    "Goal": "temper.core.goal",
    "Metric": "temper.core.metric",
    "QuantizationAwareTraining": "temper.techniques.quantization.aware_training",
    "Recipe": "temper.core.recipe",
    "Result": "temper.pipeline.optimize",
    "Task": "temper.core.task",
    "load": "temper.core.artifact",
    "optimize": "temper.pipeline.optimize",
    "verify": "temper.pipeline.verify",
}
"""Where each public name lives: it is imported when it is first used, so that `import temper` stays quick."""

__all__ = [
    "Artifact",
    "Conditions",
    "Data",
    "Goal",
    "Metric",
    "QuantizationAwareTraining",
    "Recipe",
    "Result",
    "Task",
    "load",
    "optimize",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'temper' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
