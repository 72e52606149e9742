"""PyTorch: eager, and compiled by Inductor with frozen weights and the C++ wrapper, in float32 or bfloat16."""

from pathlib import Path
from typing import Any

import torch

from peers import Call
from peers.subject import Subject
from temper.core.schema import Array


def build(subject: Subject, folder: Path, **options: bool) -> None:
    """Nothing is kept: a compiled module lives in its process. Inductor caches what it compiled."""


def load(subject: Subject, folder: Path, threads: int, *, compiled: bool = False, bfloat16: bool = False) -> Call:
    module = subject.module()
    if compiled:
        return compiled_call(module, subject, threads, bfloat16=bfloat16)
    prepare(threads)
    return _call(module)


def compiled_call(module: torch.nn.Module, subject: Subject, threads: int, *, bfloat16: bool = False) -> Call:
    """The module compiled for examples like these; the first calls, which compile, are made here."""
    from torch._inductor import config

    prepare(threads)
    config.freezing = True
    config.cpp_wrapper = True
    compiled = torch.compile(module, dynamic=subject.varied)
    call = _call(compiled, bfloat16)
    for example in subject.examples("proof").spread(3):
        call(*example)
    return call


def prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)


def _call(module: Any, bfloat16: bool = False) -> Call:
    def call(*arrays: Array) -> tuple[Array, ...]:
        tensors = [torch.from_numpy(array) for array in arrays]
        if bfloat16:
            with torch.autocast("cpu", torch.bfloat16):
                outputs = module(*tensors)
        else:
            outputs = module(*tensors)
        return tuple(_array(output) for output in (outputs if isinstance(outputs, (tuple, list)) else (outputs,)))

    return call


def _array(output: torch.Tensor) -> Array:
    return (output.float() if output.dtype == torch.bfloat16 else output).numpy()
