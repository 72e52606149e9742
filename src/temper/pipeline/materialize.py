"""From the data of a task to its disjoint parts, checked and in memory."""

import inspect
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from temper.core.data import Data, Examples, Parts, Source
from temper.core.errors import DataError
from temper.core.lengths import IGNORED
from temper.core.schema import Array, Outputs
from temper.measure.metrics import class_axis, primary
from temper.pipeline.disjoint import Indices, Marks, dropped, marks, quota, shared, split
from temper.pipeline.joined import aligned
from temper.pipeline.sources import is_arrays, is_sized, read, subset

CALIBRATION = 0.2
CALIBRATION_MOST = 512
"""Ranges settle with a few hundred examples, and more would only take from the other parts."""

READ_AT_ONCE = 256
"""Training examples in memory at a time while they are compared with those of other parts."""

PROTECTION = ("proof", "selection", "calibration")
"""Earlier parts keep an example that a later part holds too; training comes last."""

Held = dict[str, Examples]


def materialize(data: Data | Source, *, seed: int, needs_targets: bool) -> Parts:
    """Read, check and split the data. The notes of the result say how.

    One source becomes calibration (20 %, at most 512), selection (3/8 of the rest) and proof. A missing selection is
    20 % of proof, a missing proof 80 % of selection, a missing calibration 20 % (at most 512) of training where its
    examples can be read by number, else of selection.

    Raises: DataError naming the part, what is wrong with it, and what to do.
    """
    data = data if isinstance(data, Data) else Data(data)
    notes: list[str] = []
    held: Held = {}
    given = {"data": data.everything, **{name: getattr(data, name) for name in PROTECTION}}
    for name, source in given.items():
        if source is not None:
            held[name], converted = read(source, name)
            notes += converted
    for name in held:
        _check_values(held[name], name, needs_targets and name != "calibration")
        _check_classes(held[name], name, needs_targets and name != "calibration")
    held = _disjoint(aligned(held), notes)
    found, lasting = (None, False) if data.training is None else _training_marks(data.training, notes)
    kept = None if found is None else _trainable(data.training, found, held, seed, notes)
    held = _divided(held, data.training is not None, seed, notes)
    if "calibration" not in held:
        held["calibration"], held["selection"] = _carved(held["selection"], "selection", seed, notes)
    for name in ("selection", "proof"):
        _check_classes(held[name], name, needs_targets)
    if held["proof"].lengths is not None:
        notes.append(_lengths(held))
    return Parts(
        calibration=held["calibration"],
        selection=held["selection"],
        proof=held["proof"],
        training=data.training,
        kept=kept,
        marks=found if lasting else None,
        notes=tuple(notes),
    )


def _lengths(held: Held) -> str:
    lengths = np.concatenate([examples.lengths for examples in held.values() if examples.lengths is not None])
    return (
        f"The examples differ in length: {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}. Each is "
        "run at its own."
    )


def check_targets(targets: Array, outputs: Outputs, part: str) -> None:
    """See that integer targets are classes that the outputs have, where the outputs hold one score a class.

    For metrics that read class numbers. In dense targets, (n, ...), -100 stands for positions that do not count.

    Raises: DataError naming the first examples that are out of range.
    """
    logits = primary(outputs)
    axis = class_axis(logits.shape, targets.shape)
    if axis is None or targets.dtype.kind not in "iu" or logits.shape[axis] < 2:
        return
    classes = logits.shape[axis]
    wrong = (targets < 0) | (targets >= classes)
    if targets.ndim > 1:
        wrong &= targets != IGNORED
    rows = np.flatnonzero(wrong.reshape(len(targets), -1).any(axis=1))
    if len(rows):
        found = ", ".join(str(value) for value in np.unique(targets[wrong])[:5])
        raise DataError(
            f"{part}: {len(rows)} of {len(targets)} examples have targets that the model has no class for: {found} "
            f"(examples {', '.join(map(str, rows[:5]))}), while its {classes} classes are 0 to {classes - 1}. The "
            "split is mislabelled, or belongs to another model; classes count from 0"
        )


def call_of(examples: Examples, indices: Indices) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The positional and keyword tensors of one call with the examples at these positions, which have one length."""
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in examples.inputs_at(indices))
    if examples.names is None:
        return tensors, {}
    return (), dict(zip(examples.names, tensors, strict=True))


def input_names(model: nn.Module, examples: Examples) -> tuple[str, ...]:
    """What the inputs are called: the keys of a dict, else the parameters of the model's forward.

    Raises: DataError if forward cannot be called with these inputs.
    """
    signature = inspect.signature(model.forward)
    positional, keyword = ((), dict.fromkeys(examples.names)) if examples.names else (examples.inputs, {})
    try:
        bound = signature.bind(*positional, **keyword)
    except TypeError as error:
        raise DataError(
            f"{type(model).__name__}.forward{signature} cannot be called with the inputs of the data, "
            f"{'; '.join(map(str, examples.layout))}: {error}. Give what forward takes: a dict by its parameter names "
            "(targets under 'labels'), or a tuple in their order"
        ) from error
    if examples.names:
        return examples.names
    names: list[str] = []
    for name in bound.arguments:
        several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        names += [f"{name}_{number}" for number in range(len(positional) - len(names))] if several else [name]
    return tuple(names)


def _check_values(examples: Examples, part: str, needs_targets: bool) -> None:
    """Raise DataError for targets that are missing, and for NaN or infinity in inputs or needed targets."""
    if needs_targets and examples.targets is None:
        raise DataError(
            f"{part}: holds no targets, and the metric compares with them. Give (inputs, targets), or a dict with "
            "'labels'; without labels, the metric \"cosine\" compares with the original model's outputs"
        )
    named = [(f"input {spec.name!r}", array) for spec, array in zip(examples.layout, examples.inputs)]
    if needs_targets and examples.targets is not None:
        named.append(("targets", examples.targets))
    for name, array in named:
        rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if len(rows):
            raise DataError(
                f"{part}, {name}: {len(rows)} of {len(array)} examples hold NaN or infinity as {array.dtype}, the "
                f"first of them example {rows[0]}. Leave them out, or replace the values"
            )


def _check_classes(examples: Examples, part: str, needs_targets: bool) -> None:
    targets = examples.targets
    if targets is None or not needs_targets or targets.dtype.kind not in "biu":
        return
    if len(np.unique(targets[targets != IGNORED] if targets.ndim > 1 else targets)) == 1:
        raise DataError(
            f"{part}: all {len(examples)} examples have the target {targets.flat[0]}, so a constant answer would look "
            "perfect. Give examples of every class, in random order if the source is cut from a longer one"
        )


def _disjoint(held: Held, notes: list[str]) -> Held:
    """The parts without the examples that a better protected one holds."""
    found = {part: marks(examples) for part, examples in held.items()}
    for part in list(held):
        for protected in PROTECTION[: PROTECTION.index(part)] if part in PROTECTION else ():
            if protected in held:
                mask = shared(part, found[part], protected, found[protected])
                notes += dropped(part, protected, mask)
                held[part] = held[part].take(np.flatnonzero(~mask)) if mask.any() else held[part]
                found[part] = found[part][~mask]
    return held


def _divided(held: Held, has_training: bool, seed: int, notes: list[str]) -> Held:
    """The parts with selection and proof in place, split as `materialize` says."""
    only = next(iter(held))
    if len(held) == 1 and not has_training:
        count = len(held[only])
        calibration = quota(count, CALIBRATION, CALIBRATION_MOST)
        sizes = {"calibration": calibration, "selection": quota(count - calibration, 0.375)}
        return _split(held.pop(only), only, sizes, "proof", seed, notes)
    if "selection" not in held:
        sizes = {"selection": quota(len(held["proof"]), 0.2)}
        held |= _split(held["proof"], "proof", sizes, "proof", seed, notes)
    elif "proof" not in held:
        sizes = {"selection": quota(len(held["selection"]), 0.2)}
        held |= _split(held["selection"], "selection", sizes, "proof", seed, notes)
    return held


def _carved(examples: Examples, source: str, seed: int, notes: list[str]) -> tuple[Examples, Examples]:
    """Calibration examples and what is left of the source."""
    sizes = {"calibration": quota(len(examples), CALIBRATION, CALIBRATION_MOST)}
    carved = _split(examples, source, sizes, source, seed, notes)
    return carved["calibration"], carved[source]


def _split(examples: Examples, source: str, sizes: Mapping[str, int], rest: str, seed: int, notes: list[str]) -> Held:
    positions = split(marks(examples), tuple(sizes.values()), np.random.default_rng(seed))
    names = (*sizes, rest)
    if not all(map(len, positions)):
        distinct = len(np.unique(marks(examples)))
        raise DataError(
            f"{source}: {len(examples)} examples, {distinct} of them distinct, cannot be split into "
            f"{', '.join(names)}; give more examples, or name the parts: "
            "Data(calibration=..., selection=..., proof=...)"
        )
    counts = ", ".join(f"{len(chosen)} {name}" for name, chosen in zip(names, positions))
    notes.append(f"Split the {len(examples)} examples of {source} at random (seed {seed}): {counts}.")
    return {name: examples.take(chosen) for name, chosen in zip(names, positions)}


def _trainable(source: Source, found: Marks, held: Held, seed: int, notes: list[str]) -> Indices | None:
    """The positions of what stands in no other part, None for all; a missing calibration is taken out of the source.

    `found` are the marks of the source's examples.
    """
    keep = np.ones(len(found), dtype=bool)
    for protected in PROTECTION:
        if protected in held:
            others = marks(held[protected])
            # Many calibrate on a piece of their training set. Neither part judges, so that is put right, not refused.
            harmless = protected == "calibration"
            mask = np.isin(found, others) if harmless else shared("training", found, protected, others)
            notes += dropped("training", protected, mask & keep)
            keep &= ~mask
    kept = np.flatnonzero(keep)
    if not len(kept):
        raise DataError("training: every example stands in another part too; give examples of its own, or leave it out")
    if "calibration" not in held:
        sizes = (quota(len(kept), CALIBRATION, CALIBRATION_MOST),)
        chosen, rest = split(found[kept], sizes, np.random.default_rng(seed))
        if not len(rest):
            raise DataError(f"training: {len(kept)} examples are too few to take calibration examples out; give more")
        notes.append(f"Took {len(chosen)} of the {len(kept)} examples of training for calibration (seed {seed}).")
        held["calibration"], _ = read(subset(source, kept[chosen]), "training")
        _check_values(held["calibration"], "training", False)
        held |= aligned(held)
        kept = np.sort(kept[rest])
    return None if len(kept) == len(found) else kept


def _training_marks(source: Source, notes: list[str]) -> tuple[Marks | None, bool]:
    """The marks of the training examples, or None, with a note, where they cannot be read by number.

    And whether they are the same when the examples are read again.
    """
    if is_arrays(source):
        return marks(read(source, "training")[0]), True
    if not is_sized(source):
        reason = f"a {type(source).__name__} cannot be read by number; give the dataset itself to have that done"
    elif not len(source):
        raise DataError("training: the dataset holds no examples; give some, or leave training out")
    else:
        try:
            pieces = np.array_split(np.arange(len(source)), -(-len(source) // READ_AT_ONCE))
            found = np.concatenate([_marks_at(source, piece) for piece in pieces])
            changing = _marks_at(source, pieces[0][:1])[0] != found[0]
        except DataError as error:
            reason = str(error)
        else:
            if changing:
                notes.append(
                    "Training examples change from read to read (augmentation), so those that stand in another part "
                    "cannot be recognized."
                )
            return found, not changing
    notes.append(f"Training was not searched for examples of other parts: {reason}.")
    return None, False


def _marks_at(source: Source, indices: Indices) -> Marks:
    return marks(read(subset(source, indices), "training")[0])
