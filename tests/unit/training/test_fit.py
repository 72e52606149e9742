"""The training loop: that it learns, repeats itself, goes on where it was stopped, and ends in time."""

import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper.core.errors import TrialError
from temper.core.graph import Graph
from temper.core.training import Batch, Training
from temper.graph.mode import set_training
from temper.training.fit import Epoch, fit
from temper.training.plan import Group, Plan
from tests.models import graph_of, rows

COUNT, SIZE = 8, 16


def batch(seed: int) -> Batch:
    """Points on a plane that the model can learn exactly."""
    x = torch.randn(SIZE, 6, generator=torch.Generator().manual_seed(seed))
    return (x,), (x @ torch.linspace(-1, 1, 6))[:, None]


def training(folder: Path | None = None, **changed: Any) -> Training:
    given: dict[str, Any] = {
        "batches": lambda size, epoch: [batch(100 * epoch + index) for index in range(COUNT)],
        "selection": lambda size: [batch(99_999)],
        "loss": lambda outputs, targets: nn.functional.mse_loss(outputs[0], targets),
        "deadline": math.inf,
        "folder": folder,
        "tell": lambda line: None,
    }
    return Training(**{**given, **changed})


def graph() -> Graph:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    return graph_of(model, rows(3, 6))


def fitted(
    trained: Graph, given: Training, *, after_step: Callable[[float], None] = lambda share: None, **plan: Any
) -> list[Epoch]:
    groups = [Group(parameters=list(trained.module.parameters()), decays=True)]
    settings: dict[str, Any] = {"epochs": 4, "batch": SIZE, "learning_rate": 0.05, "optimizer": "sgd"}
    return fit(trained, groups, given, Plan(**{**settings, **plan}), name="test", seed=1, after_step=after_step)


def weights(trained: Graph) -> list[Tensor]:
    return [each.detach().clone() for each in trained.module.parameters()]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_learns(optimizer: str) -> None:
    history = fitted(graph(), training(), optimizer=optimizer, epochs=20)
    assert history[-1].selection_loss < 0.2 * history[0].selection_loss
    assert len(history) == 20


def test_equal_seeds_give_equal_bits_and_leave_the_global_generator_alone() -> None:
    found = []
    for noise in (1, 2):
        trained = graph()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        fitted(trained, training())
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights(trained))
    assert all(map(torch.equal, *found))


def test_what_the_data_draws_is_repeated_too() -> None:
    """Augmentation by Python's, NumPy's and PyTorch's generators: equal for equal seeds, another in each epoch."""

    class Drawing(list[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            drawn.extend((random.random(), _numpy(), float(torch.rand(()))))
            return super().__iter__()

    runs: list[list[float]] = []
    for noise in (1, 2):
        drawn: list[float] = []
        random.seed(noise)
        before = random.getstate()
        _numpy(noise)
        fitted(graph(), training(batches=lambda size, epoch: Drawing([batch(epoch)])), epochs=2)
        assert random.getstate() == before
        assert _numpy() == _numpy(noise)
        runs.append(drawn)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 6


def _numpy(seed: int | None = None) -> float:
    """The next number of NumPy's global generator, or the first one behind the seed, which the next one then is."""
    if seed is None:
        return float(np.random.random())  # noqa: NPY002 (what augmentation draws from)
    np.random.seed(seed)  # noqa: NPY002 (likewise)
    first = _numpy()
    np.random.seed(seed)  # noqa: NPY002 (likewise)
    return first


def test_it_goes_on_behind_the_last_whole_epoch(tmp_path: Path) -> None:
    whole = graph()
    expected = fitted(whole, training(tmp_path / "whole"))
    seen = 0

    def stop(_share: float) -> None:
        nonlocal seen
        seen += 1
        if seen == 2 * COUNT + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(graph(), training(tmp_path / "cut"), after_step=stop)
    again, told = graph(), []
    history = fitted(again, training(tmp_path / "cut", tell=told.append))
    assert [each.loss for each in history] == [each.loss for each in expected]
    assert all(map(torch.equal, weights(again), weights(whole)))
    assert "goes on behind epoch 2" in told[0]
    assert len(told) == 3


def test_a_checkpoint_of_another_training_is_said_and_left(tmp_path: Path) -> None:
    fitted(graph(), training(tmp_path), epochs=2)
    expected, again, told = graph(), graph(), []
    fitted(expected, training(), epochs=2, learning_rate=0.01)
    fitted(again, training(tmp_path, tell=told.append), epochs=2, learning_rate=0.01)
    assert all(map(torch.equal, weights(again), weights(expected)))
    assert "of a training with other settings or data" in told[0]


def test_a_broken_checkpoint_is_said_and_left(tmp_path: Path) -> None:
    (tmp_path / "test.safetensors").write_bytes(b"")
    expected, again, told = graph(), graph(), []
    fitted(expected, training())
    fitted(again, training(tmp_path, tell=told.append))
    assert all(map(torch.equal, weights(again), weights(expected)))
    assert "test.safetensors cannot be read" in told[0]
    assert "begins anew" in told[0]


def test_what_ended_with_its_time_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rate was down: more time does not bring the steps back that were left out."""
    clock, told = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def tick(_share: float) -> None:
        clock[0] += 1

    trained = graph()
    given = training(tmp_path, deadline=1.5 * COUNT, tell=told.append)
    assert len(fitted(trained, given, after_step=tick)) == 2
    assert "the time was up after 38 % of the steps" in told[-1]
    again = graph()
    history = fitted(again, training(tmp_path, deadline=math.inf, tell=told.append), after_step=tick)
    assert len(history) == 2
    assert clock[0] == 1.5 * COUNT
    assert all(map(torch.equal, weights(again), weights(trained)))


def test_no_step_is_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is up while the first batch of the second epoch is read."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def batches(size: int, epoch: int) -> Any:
        class Slow(list[Batch]):
            def __iter__(self) -> Any:
                clock[0] += epoch
                return super().__iter__()

        return Slow(batch(100 * epoch + index) for index in range(COUNT))

    assert len(fitted(graph(), training(tmp_path, batches=batches, deadline=0.5))) == 1
    clock[0] = 0.0
    assert len(fitted(graph(), training(tmp_path))) == 4


def test_rates_rise_and_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    fitted(graph(), training(), epochs=5, warmup=0.2)
    assert len(rates) == 5 * COUNT
    top = max(range(len(rates)), key=rates.__getitem__)
    assert 0.1 * len(rates) < top < 0.3 * len(rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.01 * 0.05


def test_it_ends_in_time_with_the_rate_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock runs a second a step: half of the steps fit, and the schedule is through by then."""
    clock, rates = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    trained = graph()

    def tick(_share: float) -> None:
        clock[0] += 1

    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    history = fitted(trained, training(deadline=2.0 * COUNT), after_step=tick, epochs=4)
    assert len(history) == 2
    assert len(rates) == 2 * COUNT
    assert rates[-1] < 0.05 * max(rates)
    with pytest.raises(TrialError, match="before the first step"):
        fitted(graph(), training(deadline=clock[0]))


def test_it_ends_when_selection_gets_no_better() -> None:
    worse = iter(range(100))

    def loss(outputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        grown = 0.0 if torch.is_grad_enabled() else float(next(worse))
        return nn.functional.mse_loss(outputs[0], targets) * 1e-6 + grown

    history = fitted(graph(), training(loss=loss), epochs=9, patience=2)
    assert len(history) == 3


@pytest.mark.parametrize(("first", "said"), [(1, "at the first step: look at the loss"), (3, "diverged by step 8")])
def test_a_loss_that_is_not_finite_is_said(first: int, said: str) -> None:
    calls = 0

    def loss(outputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return nn.functional.mse_loss(outputs[0], targets) * (math.nan if calls >= first else 1.0)

    with pytest.raises(TrialError, match=said):
        fitted(graph(), training(loss=loss))


@pytest.mark.parametrize(("patience", "looked_at"), [(0, COUNT // 4), (9, 3 * COUNT)])
def test_what_only_tells_how_it_goes_takes_little_time(patience: int, looked_at: int) -> None:
    """Where nothing depends on the selection part, no more of it is looked at than a quarter of an epoch."""
    seen = 0

    def loss(outputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        nonlocal seen
        seen += not torch.is_grad_enabled()
        return nn.functional.mse_loss(outputs[0], targets)

    fitted(graph(), training(loss=loss, selection=lambda size: [batch(1)] * 3 * COUNT), epochs=2, patience=patience)
    assert seen == 2 * looked_at


def test_looking_at_the_selection_part_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Slow(list[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            for each in super().__iter__():
                clock[0] += 10
                yield each

    given = training(selection=lambda size: Slow([batch(1)] * COUNT), deadline=15.0, tell=told.append)
    (only,) = fitted(graph(), given, epochs=2, patience=1)
    assert math.isnan(only.selection_loss)
    assert clock[0] == 20
    assert "selection" not in told[0]
    assert told[1:] == ["the time was up after 50 % of the steps that were planned"]


def test_batches_that_are_of_no_use_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source says that it has more than it gives: the rate is down at the end all the same."""

    class Boasting(list[Batch]):
        def __len__(self) -> int:
            return 2 * super().__len__()

    shares: list[float] = []
    given = training(batches=lambda size, epoch: Boasting([batch(index) for index in range(COUNT)]))
    fitted(graph(), given, after_step=shares.append, epochs=4)
    assert len(shares) == 4 * COUNT
    assert shares[-1] > 0.95


def test_without_a_selection_loss_nothing_ends_early() -> None:
    assert len(fitted(graph(), training(selection=lambda size: []), epochs=4, patience=1)) == 4


def test_a_long_epoch_says_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def tick(_share: float) -> None:
        clock[0] += 16

    fitted(graph(), training(tell=told.append), after_step=tick, epochs=1)
    assert [line.split(",")[0] for line in told[:-1]] == [f"epoch 1 of 1: {share} %" for share in (25, 50, 75, 100)]


def test_gradients_are_clipped() -> None:
    """The first step of SGD is as long as the rate times the bound."""
    trained = graph()
    before = weights(trained)
    one = [batch(0)]
    fitted(trained, training(batches=lambda size, epoch: one), epochs=1, warmup=0.0, clip_norm=1e-3, learning_rate=2.0)
    length = math.sqrt(sum(float((new - old).square().sum()) for new, old in zip(weights(trained), before)))
    assert length == pytest.approx(0.5 * 2.0 * 1e-3 * 1.9, rel=1e-3), "half the rate, and Nesterov's 1 + 0.9"


def test_each_group_is_clipped_by_itself() -> None:
    trained = graph()
    before = weights(trained)
    one = [batch(0)]
    groups = [Group(parameters=[each], rate=1.0) for each in trained.module.parameters()]
    plan = Plan(epochs=1, batch=SIZE, learning_rate=2.0, optimizer="sgd", warmup=0.0, clip_norm=1e-3)
    fit(trained, groups, training(batches=lambda size, epoch: one), plan, name="test", seed=0)
    lengths = [float((new - old).norm()) for new, old in zip(weights(trained), before)]
    assert lengths == pytest.approx([0.5 * 2.0 * 1e-3 * 1.9] * len(groups), rel=1e-3)


def test_autocast_computes_products_in_bfloat16_and_the_loss_in_float32() -> None:
    seen: list[Tensor] = []

    def loss(outputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(outputs[0].detach())
        return nn.functional.mse_loss(outputs[0], targets)

    fitted(graph(), training(loss=loss), epochs=1, autocast=True)
    assert all(each.dtype == torch.float32 for each in seen)
    assert torch.equal(seen[0], seen[0].bfloat16().float())


class Viewed(nn.Module):
    """A `view` behind a convolution, and a convolution of volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 2)
        self.linear = nn.Linear(4 * 6 * 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        deep = self.deep(x[:, None]).mean((1, 2, 3, 4))
        return self.linear(torch.relu(self.flat(x)).view(x.size(0), -1)) + deep[:, None]


def test_what_asks_for_contiguous_memory_trains_channels_last() -> None:
    torch.manual_seed(0)
    x = torch.randn(SIZE, 3, 8, 8)
    found = []
    for channels_last in (True, False):
        torch.manual_seed(1)
        trained = graph_of(Viewed(), x[:3])
        given = training(
            batches=lambda size, epoch: [((x,), x.mean((1, 2, 3))[:, None])] * COUNT,
            selection=lambda size: [((x,), x.mean((1, 2, 3))[:, None])],
        )
        fitted(trained, given, epochs=2, channels_last=channels_last)
        assert all(each.is_contiguous() for each in trained.module.parameters())
        found.append(trained(x)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_batch_norm_does_not_see_a_single_value() -> None:
    torch.manual_seed(0)
    trained = graph_of(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), rows(3, 6))
    set_training(trained, True)
    single = tuple(each[:1] for each in batch(0)[0]), batch(0)[1][:1]
    fitted(trained, training(batches=lambda size, epoch: [batch(0), single, batch(1)]), epochs=2)
    assert all(bool(each.isfinite().all()) for each in trained.module.buffers())
    with pytest.raises(TrialError, match="two examples or more"):
        fitted(trained, training(batches=lambda size, epoch: [single]))


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(TrialError, match="loss is not finite"):
        fitted(graph(), training(loss=lambda outputs, targets: outputs[0].mean() * math.nan))
    with pytest.raises(TrialError, match="does not hold one batch"):
        fitted(graph(), training(batches=lambda size, epoch: []))


def test_groups_have_rates_of_their_own() -> None:
    trained = graph()
    first, second, third, fourth = trained.module.parameters()
    before = weights(trained)
    groups = [Group(parameters=[first, second], rate=0.0), Group(parameters=[]), Group(parameters=[third])]
    plan = Plan(epochs=1, batch=SIZE, learning_rate=0.1, optimizer="sgd")
    fit(trained, groups, training(), plan, name="test", seed=0)
    moved = [not torch.equal(*pair) for pair in zip(before, (first, second, third, fourth))]
    assert moved == [False, False, True, False]


def test_a_graph_that_changes_between_epochs_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr("temper.training.fit.COMPILED_FROM", 1)
    monkeypatch.setattr(torch, "compile", lambda module, **options: compiled.append(module) or module)
    settings: dict[str, Any] = {"epochs": 4, "batch": SIZE, "learning_rate": 0.05, "optimizer": "sgd"}
    trained, epochs = graph(), []

    def changed(epoch: int) -> bool:
        epochs.append(epoch)
        return epoch == 2

    groups = [Group(parameters=list(trained.module.parameters()))]
    fit(trained, groups, training(), Plan(**settings), name="test", seed=1, before_epoch=changed)
    assert epochs == [0, 1, 2, 3]
    assert len(compiled) == 2


def test_what_cannot_be_compiled_is_trained_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(module: nn.Module, **options: Any) -> Callable[..., Any]:
        def call(*inputs: Tensor) -> Any:
            raise torch._dynamo.exc.Unsupported("an operator that it does not know\nand more")

        return call

    expected = graph()
    fitted(expected, training())
    monkeypatch.setattr("temper.training.fit.COMPILED_FROM", 1)
    monkeypatch.setattr(torch, "compile", compiled)
    trained, told = graph(), []
    fitted(trained, training(tell=told.append))
    assert all(map(torch.equal, weights(trained), weights(expected)))
    assert [line for line in told if "an operator that it does not know): it runs uncompiled" in line] == told[:1]
