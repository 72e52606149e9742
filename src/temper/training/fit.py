"""The training loop that every training technique shares."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from temper.core.errors import MissingExtra, TrialError
from temper.core.graph import Graph
from temper.core.training import Training
from temper.graph.mode import set_training
from temper.hardware.compiler import require_compiler
from temper.training.batch_norms import usable
from temper.training.checkpoint import Checkpoint, write
from temper.training.device import moved
from temper.training.memory import channels_last
from temper.training.plan import Group, Plan, identity, optimizer
from temper.training.randomness import seeded

COMPILED_FROM = 300
"""Steps from which compiling, which takes a minute or so, is worth its time."""
LOOKED_AT = 20
"""Steps after which the loss is looked at, for which a graphics processor must be waited for."""
FEWER_LOOKED_AT = 4
"""How many times as many batches an epoch has as are looked at of the selection part, to tell how training goes."""
TOLD_AFTER = 30.0
"""Seconds after which a long epoch says how far it has come."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to: mean losses on the training and the selection part, NaN if unknown, and seconds."""

    loss: float
    selection_loss: float
    seconds: float


def fit(
    graph: Graph,
    groups: Sequence[Group],
    training: Training,
    plan: Plan,
    *,
    name: str,
    seed: int,
    before_epoch: Callable[[int], bool] = lambda epoch: False,
    after_step: Callable[[float], None] = lambda share: None,
) -> list[Epoch]:
    """Train the groups' parameters in place, in the mode that the graph is in; what each epoch came to.

    The graph is on `training.device`, its parameters with it. `before_epoch` is told the number of the epoch, from 0,
    and returns whether it changed the graph, which is then compiled anew; `after_step` is called, without gradients,
    behind each step of the optimizer, with the share of the training that is over. `name` is the checkpoint's: training
    that was interrupted goes on behind its last whole epoch, and begins anew where the file is of another training or
    cannot be read. The parameters of the last epoch are what stays.

    Raises: TrialError if the loss is not finite, if there is no batch, or if the time does not suffice for one step.
    """
    file = None if training.folder is None else training.folder / f"{name}.safetensors"
    form = channels_last(graph) if plan.channels_last else nullcontext(False)
    with form as is_channels_last, torch.enable_grad():
        loop = _Loop(graph, groups, training, plan, file, after_step, seed, is_channels_last)
        loop.begin()
        loop.compile()
        while not loop.ended():
            with seeded(seed, len(loop.history)):
                if before_epoch(len(loop.history)):
                    loop.compile()
                if loop.epoch():
                    loop.save()
        loop.tell_what_is_missing()
    if not loop.step:
        raise TrialError(
            f"{name}: the time ended before the first step of training; give the run more, or fewer epochs"
        )
    return loop.history


class _Loop:
    """The state of one training, and how it goes on."""

    def __init__(
        self,
        graph: Graph,
        groups: Sequence[Group],
        training: Training,
        plan: Plan,
        file: Path | None,
        after_step: Callable[[float], None],
        seed: int,
        is_channels_last: bool,
    ) -> None:
        self.graph, self.training, self.plan, self.file, self._after_step = graph, training, plan, file, after_step
        self._is_channels_last = is_channels_last
        self._groups = groups = [group for group in groups if group.parameters]
        with seeded(seed, 0):  # a source may be read for the first time
            self._steps = len(training.batches(plan.batch, 0))
        if not self._steps:
            raise TrialError("the training part does not hold one batch: give more examples, or a smaller batch")
        self._identity = identity(graph, groups, plan, seed, self._steps)
        self._began: float | None = None
        self._cut = False
        self._size = 0
        self._compiled: Callable[..., Any] | None = None
        self._compiles = True
        self.step = 0
        self.history: list[Epoch] = []
        self._optimizer = optimizer(groups, plan)

    def begin(self) -> None:
        """Go on where the checkpoint ends, if there is one, at the rate that belongs there."""
        self._restore()
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda _: self.plan.rate_at(self._share()))

    def ended(self) -> bool:
        worse = 0
        best = math.inf
        for each in self.history:
            if each.selection_loss < best:
                worse, best = 0, each.selection_loss
            elif each.selection_loss >= best:  # not where there is none
                worse += 1
        over = self._cut or time.monotonic() >= self.training.deadline
        return over or 0 < self.plan.patience <= worse or len(self.history) >= self.plan.epochs

    def epoch(self) -> bool:
        """Train for an epoch, or until the time is up, and whether there was a step."""
        began = told = time.monotonic()
        seen = 0
        total = torch.zeros((), device=self.training.device)
        given = self.training.batches(self.plan.batch, len(self.history))
        for inputs, targets in usable(self.graph, given):
            if time.monotonic() >= self.training.deadline:
                self._cut = True
                break
            share = self._share()
            loss = self._loss(inputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.plan.clip_norm:
                for group in self._groups:
                    nn.utils.clip_grad_norm_(group.parameters, self.plan.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            with torch.no_grad():
                self._after_step(share)
            total, seen, self.step = total + loss.detach(), seen + 1, self.step + 1
            self._began = self._began or time.monotonic()
            self._schedule.step()
            if seen % LOOKED_AT == 0 or self.step == 1:
                self._require_finite(total)
            if time.monotonic() - told > TOLD_AFTER:
                told = time.monotonic()
                self._tell(f"{100 * seen / self._steps:.0f} %, loss {float(total) / seen:.4f}")
        if not seen and not self._cut:
            raise TrialError(
                f"epoch {len(self.history) + 1} of the training part holds no batch to train on: give a source that "
                "can be gone through again, and batches of two examples or more where there are batch norms"
            )
        if not seen:
            return False
        self._require_finite(total)
        if not self._cut:
            self._steps = seen  # a source may count batches that are of no use
        selection_loss = self._selection_loss()
        seconds = time.monotonic() - began
        loss_ = float(total) / seen
        seen_on_selection = "" if math.isnan(selection_loss) else f", on selection {selection_loss:.4f}"
        self._tell(f"loss {loss_:.4f}{seen_on_selection}, {seconds:.0f} s")
        self.history.append(Epoch(loss=loss_, selection_loss=selection_loss, seconds=seconds))
        return True

    def tell_what_is_missing(self) -> None:
        """Say how far the training came, if the time was up before its end."""
        share = self.step / (self.plan.epochs * self._steps)
        if self.step and share < 1 and (self._cut or time.monotonic() >= self.training.deadline):
            self.training.tell(f"the time was up after {100 * share:.0f} % of the steps that were planned")

    def _tell(self, line: str) -> None:
        self.training.tell(f"epoch {len(self.history) + 1} of {self.plan.epochs}: {line}")

    def save(self) -> None:
        """Write what is needed to go on behind this epoch."""
        if self.file is not None:
            history = [asdict(each) for each in self.history]
            told = {"step": self.step, "steps": self._steps, "cut": self._cut, "history": history}
            write(self.file, self.graph.module, self._optimizer, {"identity": self._identity, **told})

    def _restore(self) -> None:
        if self.file is None or not self.file.exists():
            return
        try:
            found = Checkpoint.read(self.file)
        except ValueError as error:
            self.training.tell(f"{error}: training begins anew")
            return
        told = found.progress
        if told["identity"] != self._identity:
            self.training.tell(f"{self.file} is of a training with other settings or data: this one begins anew")
            return
        found.restore(self.graph.module, self._optimizer)
        self.step, self._steps, self._cut = told["step"], told["steps"], told["cut"]
        self.history = [Epoch(**each) for each in told["history"]]
        self.training.tell(f"training goes on behind epoch {len(self.history)}")

    def compile(self) -> None:
        """Put PyTorch's compiler before the module as it is now, where that is there and worth its time."""
        self._compiled = None
        few = self.plan.epochs * self._steps - self.step < COMPILED_FROM
        if few or not self._compiles or self.graph.schema.dynamic_length:
            return
        try:
            require_compiler("training")
        except MissingExtra:
            return
        # Kernels of small networks take less time than it takes to launch them one by one; CUDA graphs launch all.
        mode = "reduce-overhead" if self.training.device == "cuda" else None
        self._compiled = torch.compile(self.graph.module, dynamic=False, mode=mode)

    def _require_finite(self, total: Tensor) -> None:
        if not math.isfinite(float(total)):
            if self.step == 1:
                raise TrialError("the loss is not finite at the first step: look at the loss and the training part")
            raise TrialError(
                f"training diverged by step {self.step}: its loss is not finite; a lower learning_rate may help"
            )

    def _loss(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        inputs, targets = moved(inputs, self.training.device), targets.to(self.training.device)
        if self._is_channels_last:
            inputs = tuple(
                each.contiguous(memory_format=torch.channels_last) if each.dim() == 4 else each for each in inputs
            )
        # Compiled for the first batch, whose size may be the source's own; a smaller last one would be compiled anew.
        self._size = self._size or len(inputs[0])
        whole = len(inputs[0]) == self._size
        with torch.autocast(self.training.device, torch.bfloat16, enabled=self.plan.autocast):
            outputs = self._run_compiled(inputs) if whole and self._compiled is not None else self.graph.module(*inputs)
        return self.training.loss(
            tuple(each.float() if each.is_floating_point() else each for each in outputs), targets
        )

    def _run_compiled(self, inputs: tuple[Tensor, ...]) -> Any:
        """The outputs by the compiled module; if it cannot be compiled, by the module itself, from then on.

        The way back is compiled at once with the way there, so that what fails in it fails here.
        """
        assert self._compiled is not None
        try:
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                return self._compiled(*inputs)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            reason = str(error).strip().split("\n")[0]
            self.training.tell(f"the training step cannot be compiled ({reason}): it runs uncompiled, which is slower")
            self._compiled, self._compiles = None, False
            return self.graph.module(*inputs)

    def _selection_loss(self) -> float:
        """The mean loss on the selection part; NaN if there is none, or the time is up.

        Where nothing depends on it but what is told, it is that of a part that takes little time beside an epoch.
        """
        if self._cut:
            return math.nan
        copy = self.graph.copy()
        set_training(copy, False)
        total, count = 0.0, 0
        most = None if self.plan.patience else max(1, self._steps // FEWER_LOOKED_AT)
        with torch.no_grad():
            for inputs, targets in islice(self.training.selection(self.plan.batch), most):
                if time.monotonic() >= self.training.deadline:
                    return math.nan
                outputs = copy(*moved(inputs, self.training.device))
                total += float(self.training.loss(outputs, targets.to(self.training.device))) * len(targets)
                count += len(targets)
        return total / count if count else math.nan

    def _share(self) -> float:
        """What is over in the middle of this step: the share of the steps or, if greater, of the time; at most 1.

        Time counts from the end of the first step, with which the graph is compiled.
        """
        share = (self.step + 0.5) / (self.plan.epochs * self._steps)
        if self._began is not None and math.isfinite(self.training.deadline):
            past = time.monotonic() - self._began
            share = max(share, past / max(self.training.deadline - self._began, 1e-9))
        return min(share, 1.0)
