"""Whatever draws at random in one epoch, repeatably: dropout, the order of a loader, the augmentation of a dataset."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, epoch: int) -> Iterator[None]:
    """The global generators of Python, NumPy and PyTorch, as this seed and epoch set them; afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (others draw from it)
    own = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(own)
        np.random.seed(own)  # noqa: NPY002 (likewise)
        torch.manual_seed(own)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 (likewise)
