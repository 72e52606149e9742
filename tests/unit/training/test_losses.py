"""Named losses against PyTorch's, what shapes leave open, and what does not go together."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from temper.core.errors import TaskError
from temper.core.schema import LENGTH, Schema, TensorSpec
from temper.core.training import Loss
from temper.training.losses import resolve


def schema(*shape: int | str | None) -> Schema:
    outputs = (TensorSpec(name="logits", shape=(None, *shape), dtype="float32"),)
    return Schema(inputs=(TensorSpec(name="x", shape=(None, 4), dtype="float32"),), outputs=outputs, nesting="tensor")


def cross_entropy(*shape: int | str | None) -> Loss:
    return resolve("cross_entropy", "accuracy", schema(*shape))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def classes(*shape: int, below: int = 5) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(len(shape)))


def test_classes_may_stand_first_or_last() -> None:
    logits, targets = drawn(3, 5, 7), classes(3, 7)
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(cross_entropy(5, 7)((logits,), targets), expected)
    torch.testing.assert_close(cross_entropy(7, 5)((logits.movedim(1, -1),), targets), expected)


def test_where_lengths_differ_the_classes_are_the_other_axis() -> None:
    """At a length of 5, logits (3, 5, 5) could be read both ways."""
    logits, targets = drawn(3, 5, 5), classes(3, 5)
    last, first = F.cross_entropy(logits.movedim(-1, 1), targets), F.cross_entropy(logits, targets)
    assert abs(float(last - first)) > 0.01
    torch.testing.assert_close(cross_entropy(LENGTH, 5)((logits,), targets), last)
    torch.testing.assert_close(cross_entropy(5, LENGTH)((logits,), targets), first)


def test_what_is_ignored_does_not_count_and_may_be_all() -> None:
    logits, targets = drawn(3, 5, 7), classes(3, 7)
    targets[:, 4:] = -100
    torch.testing.assert_close(
        cross_entropy(5, 7)((logits,), targets), F.cross_entropy(logits[:, :, :4], targets[:, :4])
    )
    assert float(cross_entropy(5, 7)((logits,), torch.full((3, 7), -100))) == 0.0


def test_what_a_loss_holds_goes_where_the_targets_are() -> None:
    weighted = torch.nn.CrossEntropyLoss(weight=torch.rand(5))
    found = resolve(weighted, "cosine", schema(5))((drawn(3, 5).to("meta"),), classes(3).to("meta"))
    assert found.device.type == "meta"


def test_targets_may_be_probabilities_and_binary_and_columns() -> None:
    logits, shares = drawn(6, 5), drawn(6, 5).softmax(1)
    torch.testing.assert_close(cross_entropy(5)((logits,), shares), F.cross_entropy(logits, shares))
    targets = classes(6)
    torch.testing.assert_close(cross_entropy(5)((logits,), targets[:, None]), F.cross_entropy(logits, targets))
    one, yes = drawn(6, 1), classes(6, below=2)
    both = torch.cat([torch.zeros(6, 1), one], 1)
    torch.testing.assert_close(cross_entropy(1)((one,), yes), F.cross_entropy(both, yes))


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(TaskError, match=r"logits \(3, 5, 7\) do not go with targets \(3, 6\)"):
        cross_entropy(5, 7)((drawn(3, 5, 7),), classes(3, 6))
    mse = resolve("mse", "cosine", schema(2, 3))
    torch.testing.assert_close(mse((drawn(4, 2, 3),), drawn(4, 2, 3)[:, None] + 1), torch.tensor(1.0))
    with pytest.raises(TaskError, match=r"outputs \(4, 2, 3\) do not go with targets \(4, 3, 2\)"):
        mse((drawn(4, 2, 3),), drawn(4, 3, 2))
    with pytest.raises(TaskError, match=r"returned \(6,\): it must return one number"):
        resolve(lambda outputs, targets: outputs[:, 0], "accuracy", schema(5))((drawn(6, 5),), classes(6))
    with pytest.raises(TaskError, match="'hinge'"):
        resolve("hinge", "accuracy", schema(5))
