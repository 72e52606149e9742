"""Which examples are the same, and splits that never put two copies of one example into two parts."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper.core.data import Examples
from temper.core.errors import DataError
from temper.core.lengths import groups

Marks = NDArray[np.uint64]
Indices = NDArray[np.int64]

ACCEPTED = 0.01
"""The share of the smaller of two parts that may stand in both before it is taken for a mistake."""


def marks(examples: Examples) -> Marks:
    """One number an example, (n,): examples with equal inputs, whatever targets and padding, have equal marks.

    64 bits: among a million examples the chance that any two are confused, which would cost one of them, is 3e-8.
    """
    order = sorted(range(len(examples.inputs)), key=lambda index: examples.names[index] if examples.names else index)
    found = np.empty(len(examples), dtype=np.uint64)
    for group in groups(examples.lengths, len(examples), len(examples)):
        inputs = examples.inputs_at(group)
        columns = [np.ascontiguousarray(inputs[index]) for index in order]
        start = blake2b(repr([(str(column.dtype), column.shape[1:]) for column in columns]).encode(), digest_size=8)
        for row, position in enumerate(group):
            digest = start.copy()
            for column in columns:
                digest.update(column[row : row + 1].tobytes())
            found[position] = int.from_bytes(digest.digest(), "little")
    return found


def split(given: Marks, sizes: Sequence[int], rng: np.random.Generator) -> list[Indices]:
    """Random positions for parts of these sizes, and the rest as the last part.

    Equal marks stay together, so a size is exceeded where copies stand at its end. Which examples a part gets
    depends on the generator and the set of marks alone, not on their order: a shuffled source splits alike.
    """
    groups, group = np.unique(given, return_inverse=True)
    rank = rng.permutation(len(groups))[group]
    order = np.argsort(rank, kind="stable")
    borders = np.flatnonzero(np.diff(rank[order], prepend=-1, append=len(groups)))
    wanted = np.minimum(np.cumsum(sizes), len(given))
    return np.split(order, borders[np.searchsorted(borders, wanted)])


def quota(count: int, fraction: float, most: int | None = None) -> int:
    """A fraction of so many examples, rounded, at least one."""
    size = max(1, round(fraction * count))
    return size if most is None else min(size, most)


def shared(part: str, given: Marks, protected: str, others: Marks) -> NDArray[np.bool_]:
    """Which examples of a part also stand in the part that is protected from it, (n,).

    Raises: DataError if more than 1 % of the smaller part is shared.
    """
    mask: NDArray[np.bool_] = np.isin(given, others)
    sides = {part: mask, protected: np.isin(others, given)}
    smaller = min(sides, key=lambda name: len(sides[name]))
    count, size = int(sides[smaller].sum()), len(sides[smaller])
    if count > ACCEPTED * size:
        raise DataError(
            f"{count} of the {size} examples of {smaller} also stand in {protected if smaller == part else part}; more "
            "than 1 % makes every number about them worthless. See that the same data was not passed twice. If "
            "examples repeat by their nature, pass them as one source, Data(examples): copies then stay in one part"
        )
    return mask


def dropped(part: str, protected: str, mask: NDArray[Any]) -> tuple[str, ...]:
    """The note on examples that were dropped, if any were."""
    count = int(mask.sum())
    if not count:
        return ()
    return (f"Dropped from {part}, because {protected} holds them too: {count} of {len(mask)} examples.",)
