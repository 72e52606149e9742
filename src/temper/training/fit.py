"""The training loop that every training technique shares."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from temper.core.errors import MissingExtra, TrialError
from temper.core.graph import Graph
from temper.core.training import Training
from temper.graph.mode import set_training
from temper.hardware.compiler import require_compiler
from temper.training.device import moved

MODULE, OPTIMIZER, PROGRESS = "module.", "optimizer.", "progress"
"""What the names of a checkpoint's tensors begin with, and the key of the rest."""
MOMENTUM = 0.9
COMPILED_FROM = 300
"""Steps from which compiling, which takes a minute or so, is worth its time."""
LOOKED_AT = 20
"""Steps after which the loss is looked at, for which a graphics processor must be waited for."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a graph is trained: for so many epochs, at a rate that warms up linearly and falls to zero as a cosine.

    If time is short the schedule is run through faster. `clip_norm` bounds the norm of all gradients together, 0 does
    not. With `autocast` products are computed in bfloat16. Training ends after `patience` epochs in a row without a
    better loss on the selection part; with 0 it does not look.
    """

    epochs: int
    batch: int
    learning_rate: float
    optimizer: Literal["sgd", "adamw"]
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip_norm: float = 0.0
    autocast: bool = False
    channels_last: bool = True
    patience: int = 0


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are trained alike: their rate as a multiple of the plan's, and whether they decay."""

    parameters: Sequence[nn.Parameter]
    rate: float = 1.0
    decays: bool = False


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to: mean losses on the training and on the selection part, and seconds with both."""

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
    that was interrupted goes on behind its last whole epoch. The parameters of the last epoch are what stays.

    Raises: TrialError if the loss is not finite, if there is no batch, or if the time does not suffice for one step.
    """
    file = None if training.folder is None else training.folder / f"{name}.safetensors"
    loop = _Loop(graph, groups, training, plan, file, after_step)
    loop.restore()
    loop.compile()
    devices = [torch.cuda.current_device()] if training.device == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        while not loop.ended():
            torch.manual_seed(seed + len(loop.history))
            if before_epoch(len(loop.history)):
                loop.compile()
            loop.epoch()
            loop.save()
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
    ) -> None:
        self.graph, self.training, self.plan, self.file, self._after_step = graph, training, plan, file, after_step
        if plan.channels_last:
            graph.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = [group for group in groups if group.parameters]
        self._rates = [plan.learning_rate * group.rate for group in groups]
        self._optimizer = _optimizer(groups, plan)
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        self._steps = len(training.batches(plan.batch, 0))
        if not self._steps:
            raise TrialError("the training part does not hold one batch: give more examples, or a smaller batch")
        self._began = time.monotonic()
        self._size = 0
        self._compiled: Callable[..., Any] | None = None
        self._compiles = True
        self.step = 0
        self.history: list[Epoch] = []

    def ended(self) -> bool:
        worse = 0
        best = math.inf
        for each in self.history:
            worse, best = (0, each.selection_loss) if each.selection_loss < best else (worse + 1, best)
        impatient = 0 < self.plan.patience <= worse
        return impatient or len(self.history) >= self.plan.epochs or time.monotonic() >= self.training.deadline

    def epoch(self) -> None:
        began, seen = time.monotonic(), 0
        total = torch.zeros((), device=self.training.device)
        for inputs, targets in self.training.batches(self.plan.batch, len(self.history)):
            if time.monotonic() >= self.training.deadline:
                break
            share = self._share()
            self._set_rates(share)
            loss = self._loss(inputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.plan.clip_norm:
                nn.utils.clip_grad_norm_(self._parameters, self.plan.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            with torch.no_grad():
                self._after_step(share)
            total, seen, self.step = total + loss.detach(), seen + 1, self.step + 1
            if seen % LOOKED_AT == 0:
                self._require_finite(total)
        self._require_finite(total)
        selection_loss = self._selection_loss()
        self.history.append(
            Epoch(loss=float(total) / max(seen, 1), selection_loss=selection_loss, seconds=time.monotonic() - began)
        )
        number, epochs, last = len(self.history), self.plan.epochs, self.history[-1]
        self.training.tell(
            f"epoch {number} of {epochs}: loss {last.loss:.4f}, on selection {selection_loss:.4f}, {last.seconds:.0f} s"
        )

    def save(self) -> None:
        """Write what is needed to go on behind this epoch."""
        if self.file is None:
            return
        tensors = {f"{MODULE}{name}": value for name, value in self.graph.module.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            held = {name: value for name, value in state.items() if isinstance(value, Tensor)}
            tensors |= {f"{OPTIMIZER}{index}.{name}": value for name, value in held.items()}
        told = json.dumps({"step": self.step, "history": [asdict(each) for each in self.history]})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_suffix(".tmp")
        # Copies, because tensors that share memory cannot be stored as they are.
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, unfinished, {PROGRESS: told})
        unfinished.replace(self.file)

    def restore(self) -> None:
        if self.file is None or not self.file.exists():
            return
        with safe_open(self.file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
            told = json.loads(stored.metadata()[PROGRESS])
        module = {name.removeprefix(MODULE): value for name, value in tensors.items() if name.startswith(MODULE)}
        self.graph.module.load_state_dict(module)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(OPTIMIZER):
                index, _, kind = name.removeprefix(OPTIMIZER).partition(".")
                state.setdefault(int(index), {})[kind] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        self.step, self.history = told["step"], [Epoch(**each) for each in told["history"]]
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
            raise TrialError(f"training diverged by step {self.step}: its loss is not finite; lower learning_rate")

    def _loss(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        inputs, targets = moved(inputs, self.training.device), targets.to(self.training.device)
        if self.plan.channels_last:
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
        copy = self.graph.copy()
        set_training(copy, False)
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in self.training.selection(self.plan.batch):
                outputs = copy(*moved(inputs, self.training.device))
                total += float(self.training.loss(outputs, targets.to(self.training.device))) * len(targets)
                count += len(targets)
        return total / count if count else math.nan

    def _share(self) -> float:
        """What is over with this step: the share of the steps or, if that is greater, of the time; at most 1."""
        share = (self.step + 1) / (self.plan.epochs * self._steps)
        if math.isfinite(self.training.deadline):
            past = time.monotonic() - self._began
            share = max(share, past / max(self.training.deadline - self._began, 1e-9))
        return min(share, 1.0)

    def _set_rates(self, share: float) -> None:
        warm = min(1.0, share / self.plan.warmup) if self.plan.warmup else 1.0
        factor = warm * 0.5 * (1 + math.cos(math.pi * share))
        for group, rate in zip(self._optimizer.param_groups, self._rates):
            group["lr"] = rate * factor


def _optimizer(groups: Sequence[Group], plan: Plan) -> torch.optim.Optimizer:
    parameters = [
        {"params": list(group.parameters), "weight_decay": plan.weight_decay if group.decays else 0.0}
        for group in groups
    ]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=plan.learning_rate, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(parameters, lr=plan.learning_rate)
