"""Train a quantized network: its weights, and the scales and zero points of its quantizers with them.

Quantizers stand where post-training quantization would put them, so what is trained is what the runtime executes.
Batch norms stay in the graph while it is trained, behind layers whose weights are quantized without them; folded at the
end, they change scales and biases and no integer.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from torch import nn
from torch.fx import Node

from temper.core.context import Context
from temper.core.errors import NoEffect, UsageError
from temper.core.facts import has_calibration, has_integer_runtime, has_training
from temper.core.graph import Graph
from temper.core.knobs import knob
from temper.core.technique import Technique
from temper.core.training import Training
from temper.graph.batch_norms import fold_batch_norms, fold_quantized, unfold_batch_norms
from temper.graph.facts import (
    CONVOLUTIONS,
    float_layers,
    has_float_layers,
    has_foldable_batch_norm,
    has_quantizers,
    is_call,
)
from temper.graph.learned_quantizers import LearnedQuantizer, learn, settle
from temper.graph.mode import norms_in_training, set_norm_training, set_training
from temper.graph.patterns.constants import has_foldable_constants
from temper.graph.quantizers import remove_quantizers
from temper.graph.surgery import clean, set_tensor, tensor_of
from temper.techniques.quantization._insertion import quantize_bias
from temper.techniques.quantization._ranges import weight_scales
from temper.techniques.quantization._static import Bits, Ranges, quantize
from temper.training.batch_norms import re_estimate, usable
from temper.training.device import moved, on
from temper.training.fit import fit
from temper.training.oscillation import Freezing
from temper.training.plan import Group, Plan
from temper.training.randomness import seeded

RE_ESTIMATED, RE_ESTIMATED_LEAST = 50, 5
"""Batches that the statistics of batch norms are taken from at the end, and the least if time is short."""
RE_ESTIMATING = 0.1
"""The share of the time that is kept for it."""
SGD_RATES, EIGHT_BIT_RATE, ADAMW_RATE = {2: 0.02, 3: 0.01, 4: 0.003}, 0.001, 5e-5
"""Learning rates. Those at 3 and 8 bits are Esser et al.'s, section 3; the fewer bits, the further weights must go."""
ADAMW_SCALES = 20.0
"""The rate of scales with AdamW, as a multiple: a step is a thousandth of a scale, as it is of a weight of 0.05."""
STAIRS = (4, 3)
"""The bits by way of which progressive training comes down (Li et al. 2020, arXiv 1909.13144)."""
EARLY = 6
"""The part of all epochs that each step of the staircase but the last gets, one epoch at least."""


@dataclass(frozen=True, kw_only=True)
class QuantizationAwareTraining(Technique):
    """Train the network with its quantizers, whose scales are learned too (LSQ, LSQ+), in float32."""

    needs = (
        has_training,
        has_calibration,
        has_integer_runtime,
        has_float_layers,
        ~has_quantizers,
        ~has_foldable_constants,
    )
    leaves = (has_quantizers, ~has_foldable_batch_norm)
    undisturbed = (has_foldable_batch_norm,)
    slow = True
    reference = "Esser et al. 2020, arXiv 1902.08153; Bhalgat et al. 2020, arXiv 2004.09576"

    num_bits: int = knob(8, low=2, high=8, unit="bit", help="bits of weights and of what layers read")
    weight_bits: int = knob(
        0, among=(2, 3, 4, 0), low=0, high=8, unit="bit", help="bits of weights, where not num_bits (0)"
    )
    activation_bits: int = knob(0, low=0, high=8, unit="bit", help="bits of what layers read, where not num_bits (0)")
    ends_bits: int = knob(8, low=2, high=8, unit="bit", help="bits of the first and last layers, which lose most")
    layer_bits: str = knob("", help="bits of single layers by name, of weights and of what they read: 'conv1=8,fc=4/8'")
    epochs: int = knob(
        4, among=(2, 4, 8), low=1, high=10_000, help="times that the training part is gone through", free=True
    )
    batch: int = knob(
        128, among=(32, 128), low=1, high=1_000_000, help="examples a step, unless they come in batches", free=True
    )
    optimizer: str = knob(
        "auto", among=("auto", "sgd", "adamw"), help="sgd for graphs with convolutions, else adamw", free=True
    )
    learning_rate: float = knob(
        0.0, low=0.0, high=10.0, help="the largest; 0: with sgd 0.02 to 0.001, by the fewest bits, with adamw 5e-5"
    )
    scale_rate: float = knob(1.0, low=0.0, high=100.0, help="that of scales, as a multiple; 0: they stay as they are")
    weight_decay: float = knob(1e-4, low=0.0, high=1.0, help="of weights alone, never of scales, norms and biases")
    frozen_norms: float = knob(
        0.0, low=0.0, high=1.0, help="share of the epochs, at the end, in which batch norms keep their statistics"
    )
    freeze_flips: float = knob(
        0.0, low=0.0, high=1.0, help="weights that flip between two integers in a greater share of steps stay; 0: none"
    )
    progressive: bool = knob(False, help="come down to few bits by way of 4 and 3, within the same epochs")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) == 1:
                raise UsageError(f"{self.name}: {name}=1 is too few: give 2 to 8, or 0 for num_bits")

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with trained weights behind quantizers.

        Raises: TrialError if training fails; NoEffect if all weights are frozen, or no layer would have the bits that
        are asked for.
        """
        training, scheme = context.training, context.runtime.integers
        assert training is not None
        assert scheme is not None
        weights = [tensor_of(graph.module, each.args[1]) for each in float_layers(graph)]
        if not any(each is not None and each.requires_grad for each in weights):
            raise NoEffect(
                f"{self.name}: the weights of all layers are frozen (requires_grad is False); let those train that "
                "may be, with model.requires_grad_(True)"
            )
        phases = self._phases(self.bits(graph, float_layers(graph)))
        for index, phase in enumerate(phases):
            remove_quantizers(graph)
            layers, norms = self.quantized(graph, context, phase.bits)
            share = phase.epochs / sum(each.epochs for each in phases[index:])
            now = time.monotonic()
            due = replace(training, deadline=now + share * (training.deadline - now))
            if len(phases) > 1:
                training.tell(f"down to {phase.bits.least} bits, step {index + 1} of {len(phases)}")
            self._train(graph, norms, phase, due, context.seed)
        fold_quantized(graph, norms)
        if scheme.integer_bias:
            for layer in layers:
                quantize_bias(graph, layer)
        clean(graph.module)
        return graph

    def _phases(self, given: Bits) -> list["_Phase"]:
        """The steps down of progressive training, as far as there are epochs for them, and what remains for the end."""
        widths = [each for each in STAIRS if each > given.least] if self.progressive else []
        early = max(1, self.epochs // EARLY)
        widths = widths[max(0, len(widths) - (self.epochs - 1) // early) :]
        stairs = [_Phase(name=f"{self.name}-{each}-bits", bits=given.at_least(each), epochs=early) for each in widths]
        return [*stairs, _Phase(name=self.name, bits=given, epochs=self.epochs - early * len(widths))]

    def quantized(self, graph: Graph, context: Context, bits: Bits) -> tuple[list[Node], list[Node]]:
        """Put quantizers into the graph, in place, ranged for batch norms behind the layers; the layers, the norms."""
        folded = fold_batch_norms(graph)
        layers = float_layers(graph)
        quantize(
            graph,
            context,
            layers=layers,
            skipped=(),
            ranges=Ranges(method="mse"),
            everywhere=True,
            bits=bits,
            integer_bias=False,
        )
        norms = unfold_batch_norms(graph, folded)
        for norm in norms:
            _range_anew(graph, norm.args[0])
        return layers, norms

    def _train(self, graph: Graph, folded: Sequence[Node], phase: "_Phase", training: Training, seed: int) -> None:
        """Train everything in place, with the statistics of batch norms taken anew at the end.

        `folded` are the norms that are folded into their layers behind.
        """
        module, plan = graph.module, self._plan(graph, phase.bits, phase.epochs)
        set_training(graph, True)
        norms = norms_in_training(graph)
        with on(graph, training.device):
            learned = learn(graph)
            if not self.scale_rate:
                for each in learned:
                    each.fix()
            gammas = [tensor_of(module, norm.args[1]) for norm in folded]
            weights = [each for each in learned if tensor_of(module, each.node.args[0]) is not None]
            freezing = Freezing(graph, weights, self.freeze_flips) if self.freeze_flips else None
            frozen_from = plan.epochs - (max(1, round(plan.epochs * self.frozen_norms)) if self.frozen_norms else 0)

            def before_epoch(epoch: int) -> bool:
                if epoch < frozen_from or not norms_in_training(graph):
                    return False
                if epoch == frozen_from:
                    self._re_estimate(graph, norms, training, seed, epoch)
                    set_training(graph, True)
                for norm in norms:
                    set_norm_training(norm, False)
                module.recompile()
                return True

            def after_step(share: float) -> None:
                for each in learned:
                    each.clamp()
                for gamma in gammas:
                    gamma.clamp_(min=0)  # type: ignore[union-attr] # a negative one would turn integers around
                if freezing is not None:
                    freezing.step(share)

            now = time.monotonic()
            kept = RE_ESTIMATING if norms else 0.0
            history = fit(
                graph,
                self._groups(graph, learned, plan, phase.bits.least),
                replace(training, deadline=now + (1 - kept) * (training.deadline - now)),
                plan,
                name=phase.name,
                seed=seed,
                before_epoch=before_epoch,
                after_step=after_step,
            )
            settle(graph, learned)
            if norms and len(history) <= frozen_from:
                self._re_estimate(graph, norms, training, seed, plan.epochs)
        set_training(graph, False)

    def _re_estimate(self, graph: Graph, norms: Sequence[Node], training: Training, seed: int, epoch: int) -> None:
        with seeded(seed, epoch):
            batches = islice(usable(graph, training.batches(self.batch, epoch)), RE_ESTIMATED)
            counted = enumerate(moved(inputs, training.device) for inputs, _ in batches)
            in_time = takewhile(
                lambda each: each[0] < RE_ESTIMATED_LEAST or time.monotonic() < training.deadline, counted
            )
            re_estimate(graph, norms, (inputs for _, inputs in in_time))

    def _plan(self, graph: Graph, bits: Bits, epochs: int) -> Plan:
        convolves = any(is_call(node, CONVOLUTIONS) for node in graph.module.graph.nodes)
        chosen = self.optimizer if self.optimizer != "auto" else "sgd" if convolves else "adamw"
        usual = ADAMW_RATE if chosen == "adamw" else _sgd_rate(bits.least)
        return Plan(
            epochs=epochs,
            batch=self.batch,
            learning_rate=self.learning_rate or usual,
            optimizer="sgd" if chosen == "sgd" else "adamw",
            weight_decay=self.weight_decay,
            clip_norm=1.0 if chosen == "adamw" else 0.0,
        )

    def _groups(self, graph: Graph, learned: Sequence[LearnedQuantizer], plan: Plan, least: int) -> list[Group]:
        """Weights, which decay, what has one dimension, and scales by their bits; `least` are the fewest of a layer.

        The finer a scale, the larger are the steps, relative to it, that SGD takes at the same rate.
        """
        learnt: dict[int, tuple[float, nn.Parameter]] = {}
        for one in learned:
            rate = ADAMW_SCALES if plan.optimizer == "adamw" else _sgd_rate(one.bits) / _sgd_rate(least)
            learnt |= {id(each): (rate, each) for each in one.parameters if each.requires_grad}
        others = [each for each in graph.module.parameters() if each.requires_grad and id(each) not in learnt]
        scales = [
            Group(parameters=[each for own, each in learnt.values() if own == rate], rate=rate * self.scale_rate)
            for rate in sorted({own for own, _ in learnt.values()})
        ]
        return [
            Group(parameters=[each for each in others if each.dim() > 1], decays=True),
            Group(parameters=[each for each in others if each.dim() <= 1]),
            *scales,
        ]

    def bits(self, graph: Graph, layers: Sequence[Node]) -> Bits:
        """The bits of each layer: those given by its name, those of an end, or those of all others.

        A weight that several layers read has the most bits that one of them asks for. Raises: NoEffect if no layer has
        the usual ones.
        """
        ends = _ends(graph, layers)
        usual = (self.weight_bits or self.num_bits, self.activation_bits or self.num_bits)
        bits = {each: (self.ends_bits, self.ends_bits) if each in ends else usual for each in layers}
        if len(ends) == len(bits) and min(usual) < self.ends_bits and not self.layer_bits:
            raise NoEffect(
                f"{self.name}: every layer is a first or a last one, which have ends_bits={self.ends_bits}: none would "
                f"have {min(usual)} bits; give ends_bits or layer_bits"
            )
        bits |= self._given(layers)
        most: dict[str, int] = {}
        for layer, (weights, _) in bits.items():
            most[_weight_name(layer)] = max(weights, most.get(_weight_name(layer), 0))
        return Bits(
            weights={layer.name: most[_weight_name(layer)] for layer in bits},
            inputs={layer.name: inputs for layer, (_, inputs) in bits.items()},
        )

    def _given(self, layers: Sequence[Node]) -> Mapping[Node, tuple[int, int]]:
        """`layer_bits`, read. Raises: UsageError naming what is no layer, or no number of bits."""
        named: dict[str, list[Node]] = {}
        for each in layers:
            named.setdefault(_weight_name(each).removesuffix(".weight"), []).append(each)
        given: dict[Node, tuple[int, int]] = {}
        for entry in filter(None, self.layer_bits.split(",")):
            name, _, bits = entry.partition("=")
            weights, slash, inputs = bits.partition("/")
            both = (weights.strip(), (inputs if slash else weights).strip())
            if name.strip() not in named or not all(each.isdecimal() and 2 <= int(each) <= 8 for each in both):
                raise UsageError(
                    f"{self.name}: layer_bits has {entry!r}; write name=bits, or name=weights/inputs, with 2 to 8 "
                    f"bits, and one of these names: {', '.join(named)}"
                )
            given |= dict.fromkeys(named[name.strip()], (int(both[0]), int(both[1])))
        return given


@dataclass(frozen=True, kw_only=True)
class _Phase:
    """One training with one choice of bits; several are a staircase to few bits."""

    name: str
    bits: Bits
    epochs: int


def _sgd_rate(bits: int) -> float:
    return SGD_RATES.get(bits, EIGHT_BIT_RATE)


def _weight_name(layer: Node) -> str:
    return str(layer.args[1].target)  # type: ignore[union-attr] # read without a quantizer yet


def _ends(graph: Graph, layers: Sequence[Node]) -> set[Node]:
    """The layers that no other layer stands before, and those that none stands behind."""
    before: dict[Node, bool] = {}
    for node in graph.module.graph.nodes:
        before[node] = any(before[each] or each in layers for each in node.all_input_nodes)
    behind: dict[Node, bool] = {}
    for node in reversed(graph.module.graph.nodes):
        behind[node] = any(behind[each] or each in layers for each in node.users)
    return {each for each in layers if not before[each] or not behind[each]}


def _range_anew(graph: Graph, layer: object) -> None:
    """Set the scales of a layer's weight by the weight as it is now."""
    assert isinstance(layer, Node)
    quantizer = layer.args[1]
    assert isinstance(quantizer, Node)
    source, scale, _, low, high, _ = quantizer.args
    weight = tensor_of(graph.module, source)
    assert weight is not None
    assert isinstance(scale, Node)
    scales = weight_scales(weight.detach(), (low, high), "mse")  # type: ignore[arg-type]
    set_tensor(graph.module, str(scale.target), scales)
