"""Where a training stands, in one file: the module's tensors, the optimizer's state, and what else it has to know."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

MODULE, OPTIMIZER, PROGRESS = "module.", "optimizer.", "progress"
"""What the names of the file's tensors begin with, and the key of the rest."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file holds: tensors by name, and the progress that was written with them."""

    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> Self:
        """Raises: ValueError where the file is no checkpoint, or not all of one."""
        try:
            with safe_open(file, "pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
                return cls(tensors=tensors, progress=json.loads(stored.metadata()[PROGRESS]))
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read: {error}") from error

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the tensors back into a module and an optimizer of the same form, in place."""
        module.load_state_dict(
            {name.removeprefix(MODULE): value for name, value in self.tensors.items() if name.startswith(MODULE)}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in self.tensors.items():
            if name.startswith(OPTIMIZER):
                index, _, kind = name.removeprefix(OPTIMIZER).partition(".")
                state.setdefault(int(index), {})[kind] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def write(file: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
    """Write a checkpoint in the place of an earlier one, which stays whole until then."""
    tensors = {f"{MODULE}{name}": value for name, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        held = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"{OPTIMIZER}{index}.{name}": value for name, value in held.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    # Copies, because tensors that share memory cannot be stored as they are.
    copies = {name: value.contiguous().clone() for name, value in tensors.items()}
    save_file(copies, unfinished, {PROGRESS: json.dumps(progress)})
    unfinished.replace(file)
