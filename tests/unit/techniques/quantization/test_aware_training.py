"""What is trained is what ships: placement, bits, batch norms, agreement with the runtimes, and that training helps."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError, UsageError
from temper.core.graph import Graph
from temper.core.runtime import Runtime
from temper.core.technique import applied
from temper.core.training import Batch, Training
from temper.graph.facts import weighted_layers
from temper.graph.learned_quantizers import LearnedQuantizer
from temper.graph.quantizers import is_quantizer
from temper.graph.surgery import tensor_of
from temper.hardware.detect import this_host
from temper.runtimes.onnxruntime import OnnxRuntime
from temper.runtimes.openvino import OpenVino
from temper.techniques.quantization.aware_training import QuantizationAwareTraining
from tests.models import graph_of, images, randomized

COUNT, SIZE = 6, 32


class Net(nn.Module):
    """Convolutions with batch norms, one of negative gamma, around a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.first(x)))
        y = torch.relu(self.norm2(self.second(y)) + y)
        return self.head(torch.relu(self.third(y)).mean((2, 3)))


@pytest.fixture
def net() -> Graph:
    torch.manual_seed(3)
    model = randomized(Net()).eval()
    with torch.no_grad():
        model.norm1.weight[0] = -0.7
    return graph_of(model, images(4, size=8))


def training_for(graph: Graph) -> Training:
    """The float graph's own answers as targets."""
    with torch.no_grad():
        found: list[Batch] = [((images(SIZE + index),), graph(images(SIZE + index))[0]) for index in range(COUNT)]
    return Training(
        batches=lambda size, epoch: found,
        selection=lambda size: found[:1],
        loss=lambda outputs, targets: nn.functional.mse_loss(outputs[0], targets),
        deadline=math.inf,
        folder=None,
        tell=lambda line: None,
    )


def context_for(graph: Graph, runtime: Runtime | None = None, **changed: Any) -> Context:
    given: dict[str, Any] = {
        "runtime": runtime or OnnxRuntime(),
        "target": this_host(),
        "seed": 1,
        "calibration": (images(SIZE).numpy(),),
        "training": training_for(graph),
    }
    return Context(**{**given, **changed})


def trained(graph: Graph, runtime: Runtime | None = None, **knobs: Any) -> Graph:
    settings: dict[str, Any] = {"epochs": 3, "batch": SIZE, "learning_rate": 0.02}
    return applied(QuantizationAwareTraining(**{**settings, **knobs}), graph, context_for(graph, runtime))


def bits_of(graph: Graph) -> dict[str, tuple[int, int]]:
    """For each layer, the bits of its weight and of its input, by what its quantizers reach."""
    found = {}
    for layer in weighted_layers(graph):
        read, weight = layer.args[0], layer.args[1]
        assert is_quantizer(read)
        assert is_quantizer(weight)
        name = str(weight.args[0].target).removesuffix(".weight")  # type: ignore[union-attr]
        found[name] = (_bits(weight), _bits(read))
    return found


def _bits(quantizer: Any) -> int:
    low, high = quantizer.args[3:5]
    return math.ceil(math.log2(high - low + 1))


def loss(graph: Graph, reference: Graph) -> float:
    x = images(97)
    with torch.no_grad():
        return float(nn.functional.mse_loss(graph(x)[0], reference(x)[0]))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_training_beats_the_ranges_that_it_starts_from(net: Graph, bits: int) -> None:
    start = trained(net, num_bits=bits, epochs=1, learning_rate=1e-9, ends_bits=bits)
    end = trained(net, num_bits=bits, epochs=12, ends_bits=bits)
    assert loss(end, net) < (0.7 if bits < 8 else 1.0) * loss(start, net)


def test_bits_of_layers(net: Graph) -> None:
    assert bits_of(trained(net, num_bits=4, epochs=1)) == {
        "first": (8, 8),
        "second": (4, 4),
        "third": (4, 4),
        "head": (8, 8),
    }
    mixed = trained(net, num_bits=4, weight_bits=3, activation_bits=5, ends_bits=6, layer_bits="third=2", epochs=1)
    assert bits_of(mixed) == {"first": (6, 6), "second": (3, 5), "third": (2, 2), "head": (6, 6)}
    with pytest.raises(UsageError, match="'fourth=2'"):
        trained(net, layer_bits="fourth=2")
    with pytest.raises(UsageError, match="weight_bits=1"):
        QuantizationAwareTraining(weight_bits=1)
    with pytest.raises(UsageError, match="2 to 8 bits"):
        trained(net, layer_bits="third=9")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_have_no_more_values_than_their_bits_allow(net: Graph, bits: int) -> None:
    graph = trained(net, num_bits=bits, ends_bits=bits, epochs=1)
    for layer in weighted_layers(graph):
        quantizer = layer.args[1]
        weight, scale, zero = (tensor_of(graph.module, each) for each in quantizer.args[:3])  # type: ignore[union-attr]
        rounded = torch.ops.temper.fake_quantize(weight, scale, zero, *quantizer.args[3:])  # type: ignore[union-attr]
        assert all(len(channel.unique()) <= 2**bits for channel in rounded)


@pytest.mark.parametrize("runtime", [OnnxRuntime(), OpenVino(precision="f32")], ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_runtimes_compute_what_was_trained(net: Graph, runtime: Runtime, bits: int, tmp_path: Path) -> None:
    """Folded batch norms and packed integers included.

    A value on the border of two integers may fall to either side, which is worth one step.
    """
    runtime.require()
    graph = trained(net, runtime, num_bits=bits)
    assert not any("batch_norm" in str(node.target) for node in graph.module.graph.nodes)
    runtime.export(graph, tmp_path)
    assert runtime.executed(tmp_path, graph.schema)["int8"] > 0
    x = images(16)
    with torch.no_grad():
        expected = graph(x)[0].numpy()
    (found,) = runtime.load(tmp_path, graph.schema, 1).run(x.numpy())
    largest = float(np.abs(expected).max())
    close = np.isclose(found, expected, rtol=1e-4, atol=1e-4 * largest).all(axis=1)
    assert close.mean() >= 0.9
    assert float(np.abs(found - expected).max()) < 0.05 * largest


def test_folding_the_batch_norms_changes_no_integer(net: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs before and after the batch norms are folded into quantized layers."""
    from temper.techniques.quantization import aware_training

    fold, seen = aware_training.fold_quantized, []

    def noted(graph: Graph, norms: Any) -> None:
        x = images(16)
        with torch.no_grad():
            before = graph(x)[0]
            fold(graph, norms)
            seen.append((before, graph(x)[0]))

    monkeypatch.setattr(aware_training, "fold_quantized", noted)
    trained(net, num_bits=3)
    ((before, after),) = seen
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_scales_may_stay_as_they_are(net: Graph) -> None:
    """With a rate of zero, only weights learn: the scales are those of the ranges, whatever was trained."""

    def scales(graph: Graph) -> list[Tensor]:
        return [tensor_of(graph.module, each.args[1]) for each in graph.module.graph.nodes if is_quantizer(each)]  # type: ignore

    once, twice = (scales(trained(net, scale_rate=0.0, epochs=epochs, num_bits=4)) for epochs in (1, 3))
    free = scales(trained(net, epochs=3, num_bits=4))
    activations = [index for index, each in enumerate(once) if each.dim() == 0]
    assert all(torch.equal(once[index], twice[index]) for index in activations)
    assert not all(torch.equal(once[index], free[index]) for index in activations)


def test_without_training_data_it_says_so(net: Graph) -> None:
    with pytest.raises(TrialError, match="has training data and a loss"):
        applied(QuantizationAwareTraining(), net, context_for(net, training=None))


def test_what_a_layer_reads_may_have_bits_of_its_own(net: Graph) -> None:
    graph = trained(net, num_bits=8, layer_bits="second=3/8, third=2/4", epochs=1)
    assert bits_of(graph) == {"first": (8, 8), "second": (3, 8), "third": (2, 4), "head": (8, 8)}


def test_progressive_training_comes_down_step_by_step(net: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 2 bits by way of 4 and 3 in the inner layers, each with epochs of its own; ends stay at 8."""
    from temper.techniques.quantization import aware_training

    fit, seen = aware_training.fit, []

    def noted(graph: Graph, groups: Any, training: Training, plan: Any, **rest: Any) -> Any:
        highest = min(node.args[4] for node in graph.module.graph.nodes if _is_learned_weight(node))
        seen.append((rest["name"], plan.epochs, highest))
        return fit(graph, groups, training, plan, **rest)

    monkeypatch.setattr(aware_training, "fit", noted)
    graph = trained(net, num_bits=2, progressive=True, epochs=8)
    name = QuantizationAwareTraining.name
    assert seen == [(f"{name}-4-bits", 1, 7), (f"{name}-3-bits", 1, 3), (name, 6, 1)]
    assert bits_of(graph) == {"first": (8, 8), "second": (2, 2), "third": (2, 2), "head": (8, 8)}
    seen.clear()
    trained(net, num_bits=8, progressive=True, epochs=2)
    trained(net, num_bits=2, progressive=True, epochs=2)
    assert [(name.rpartition("training")[2], epochs) for name, epochs, _ in seen] == [("", 2), ("-3-bits", 1), ("", 1)]


def _is_learned_weight(node: Any) -> bool:
    from temper.graph.learned_quantizers import learned_quantize

    return node.target is learned_quantize and node.args[5] == 0


def test_batch_norms_may_keep_their_statistics_at_the_end(net: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken anew where they are frozen, and not moved by the epochs behind."""
    from temper.techniques.quantization import aware_training

    estimate, seen = aware_training.re_estimate, []

    def noted(graph: Graph, norms: Any, batches: Any) -> None:
        estimate(graph, norms, batches)
        seen.append([tensor_of(graph.module, norm.args[3]).clone() for norm in norms])  # type: ignore[union-attr]

    fold, last = aware_training.fold_quantized, []

    def folded(graph: Graph, norms: Any) -> None:
        last.extend(tensor_of(graph.module, norm.args[3]).clone() for norm in norms)  # type: ignore[union-attr]
        fold(graph, norms)

    monkeypatch.setattr(aware_training, "re_estimate", noted)
    monkeypatch.setattr(aware_training, "fold_quantized", folded)
    trained(net, epochs=4, frozen_norms=0.5)
    (means,) = seen
    assert all(map(torch.equal, means, last))


def test_weights_that_flip_are_frozen_also_when_training_goes_on(
    net: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted or not, the same weights come out; some were frozen, and nothing of it is left in the graph."""
    from temper.techniques.quantization import aware_training

    step, frozen, steps = aware_training.Freezing.step, [], 0

    def noted(self: Any, share: float) -> None:
        nonlocal steps
        step(self, share)
        buffers = dict(self._module.named_buffers())
        frozen.append(sum(int(each.sum()) for name, each in buffers.items() if name.endswith("_frozen")))
        steps += 1
        if steps == 2 * COUNT + 1:
            raise KeyboardInterrupt

    knobs: dict[str, Any] = {"num_bits": 2, "freeze_flips": 0.005, "learning_rate": 0.1, "epochs": 4}
    whole = trained(net, **knobs)
    monkeypatch.setattr(aware_training.Freezing, "step", noted)
    given = context_for(net, training=replace(training_for(net), folder=tmp_path))
    technique = QuantizationAwareTraining(batch=SIZE, **knobs)
    with pytest.raises(KeyboardInterrupt):
        applied(technique, net, given)
    resumed = applied(technique, net, given)
    assert frozen[-1] > frozen[0] == 0
    pairs = zip(whole.module.parameters(), resumed.module.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert not [name for name, _ in resumed.module.named_buffers() if "oscillation" in name]


def test_a_finished_training_with_frozen_norms_goes_on_as_it_was(net: Graph, tmp_path: Path) -> None:
    """The checkpoint of the last epoch is there, the trained graph is not: statistics are not taken anew."""
    given = context_for(net, training=replace(training_for(net), folder=tmp_path))
    technique = QuantizationAwareTraining(batch=SIZE, epochs=4, frozen_norms=0.5)
    once, again = (applied(technique, net, given) for _ in range(2))
    pairs = zip(once.module.state_dict().values(), again.module.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


class Tied(nn.Module):
    """One convolution in two places, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.shared(torch.relu(self.first(x))))
        return self.head(torch.relu(self.shared(y)).mean((2, 3)))


def test_a_weight_that_several_layers_read_has_the_same_bits_in_all() -> None:
    torch.manual_seed(0)
    graph = trained(graph_of(Tied().eval(), images(4)), num_bits=4, layer_bits="shared=3/5", epochs=1)
    assert [_bits(layer.args[1]) for layer in weighted_layers(graph)] == [8, 3, 3, 8]
    assert [_bits(layer.args[0]) for layer in weighted_layers(graph)] == [8, 5, 5, 8]
    assert len({layer.args[1] for layer in weighted_layers(graph)}) == 3


def test_a_bias_stays_in_the_units_of_a_weight_that_several_layers_read() -> None:
    """The second reading's input is so small that the scale of the weight must rise for its bias."""
    torch.manual_seed(0)
    model = Tied().eval()
    with torch.no_grad():
        model.shared.weight[0] = 0
        model.shared.weight[1:] *= 1e-9
        model.shared.bias[1:] *= 1e-9
        model.shared.bias[0] = -5
    graph = trained(graph_of(model, images(4)), epochs=1, learning_rate=1e-6)
    layers = [layer for layer in weighted_layers(graph) if "shared" in str(layer.args[1].args[0])]
    assert len(layers) == 2
    read, weight = ([_scale(graph, layer.args[place]) for layer in layers] for place in (0, 1))
    assert float(read[0]) != float(read[1])
    for layer, own, shared in zip(layers, read, weight, strict=True):
        torch.testing.assert_close(_scale(graph, layer.args[2]), own * shared, rtol=0, atol=0)


def _scale(graph: Graph, quantizer: Any) -> Tensor:
    assert is_quantizer(quantizer)
    found = tensor_of(graph.module, quantizer.args[1])
    assert found is not None
    return found.detach()


def test_what_is_frozen_cannot_be_trained() -> None:
    torch.manual_seed(0)
    graph = graph_of(Tied().eval().requires_grad_(False), images(4))
    with pytest.raises(NoEffect, match="weights of all layers are frozen"):
        trained(graph)


def test_bits_that_no_layer_would_have_are_refused() -> None:
    torch.manual_seed(0)
    graph = graph_of(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)), images(4, size=8)
    )
    training = replace(training_for(graph), batches=lambda size, epoch: [((images(8, size=8),), torch.zeros(8, 2))])
    context = context_for(graph, training=training, calibration=(images(8, size=8).numpy(),))
    with pytest.raises(NoEffect, match="none would have 2 bits; give ends_bits"):
        applied(QuantizationAwareTraining(num_bits=2, epochs=1), graph, context)
    narrow = applied(QuantizationAwareTraining(num_bits=2, ends_bits=2, epochs=1), graph, context)
    assert set(bits_of(narrow).values()) == {(2, 2)}


class Dropped(nn.Module):
    """Dropout before a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(torch.relu(self.first(x)), 0.5, self.training)
        return self.head(torch.relu(self.norm(self.second(y)))).mean((2, 3))


def test_statistics_are_repeated_whatever_the_global_generator_holds() -> None:
    torch.manual_seed(0)
    graph = graph_of(randomized(Dropped()), images(4))

    class Noisy(list[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            return (((x + torch.randn_like(x),), targets) for (x,), targets in super().__iter__())

    context = context_for(graph)
    assert context.training is not None
    batches = context.training.batches
    noisy = replace(context, training=replace(context.training, batches=lambda *given: Noisy(batches(*given))))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(
            applied(QuantizationAwareTraining(batch=SIZE, epochs=2), graph, noisy).module.state_dict().values()
        )
    assert all(map(torch.equal, *found))
    assert any(each.dtype == torch.float32 and each.numel() > 1 for each in found[0])


def test_a_source_that_can_be_gone_through_only_once_is_refused(net: Graph) -> None:
    context = context_for(net)
    assert context.training is not None
    once = iter(context.training.batches(SIZE, 0))

    class Once:
        def __len__(self) -> int:
            return COUNT

        def __iter__(self) -> Iterator[Batch]:
            return once

    given = replace(context, training=replace(context.training, batches=lambda size, epoch: Once()))
    with pytest.raises(TrialError, match="gone through again"):
        applied(QuantizationAwareTraining(batch=SIZE, epochs=1), net, given)


@pytest.mark.parametrize(
    ("knobs", "usual", "of_scales"),
    [
        ({"num_bits": 2}, 0.02, {2: 0.02, 8: 0.001}),
        ({"num_bits": 4, "scale_rate": 3.0}, 0.003, {4: 0.009, 8: 0.003}),
        ({"num_bits": 8, "ends_bits": 3}, 0.01, {3: 0.01, 8: 0.001}),
        ({"num_bits": 4, "optimizer": "adamw"}, 5e-5, {4: 1e-3, 8: 1e-3}),
        ({"num_bits": 4, "learning_rate": 0.3}, 0.3, {4: 0.3, 8: 0.1}),
    ],
)
def test_weights_alone_decay_and_scales_have_their_own_rate(
    net: Graph, knobs: dict[str, Any], usual: float, of_scales: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from temper.techniques.quantization import aware_training

    seen: list[Any] = []
    bits: dict[int, int] = {}
    fit, learn = aware_training.fit, aware_training.learn

    def learning(graph: Graph) -> list[LearnedQuantizer]:
        found = learn(graph)
        bits.update({id(each): one.bits for one in found for each in (one.growth, one.shift)})
        return found

    def noted(graph: Graph, groups: Any, training: Training, plan: Any, **rest: Any) -> Any:
        names = {id(each): name for name, each in graph.module.named_parameters()}
        seen.extend(
            (plan.learning_rate * group.rate, group.decays, bits.get(id(each), 0), names[id(each)])
            for group in groups
            for each in group.parameters
        )
        return fit(graph, groups, training, plan, **rest)

    monkeypatch.setattr(aware_training, "learn", learning)
    monkeypatch.setattr(aware_training, "fit", noted)
    applied(QuantizationAwareTraining(epochs=1, batch=SIZE, weight_decay=0.1, **knobs), net, context_for(net))
    decaying = {name for _, decays, _, name in seen if decays}
    assert decaying == {"first.weight", "second.weight", "third.weight", "head.weight"}
    assert len({(of, rate) for rate, _, of, _ in seen}) == 1 + len(of_scales), "not one rate for each number of bits"
    assert {of: rate for rate, _, of, _ in seen} == pytest.approx({0: usual, **of_scales})
    assert all((of > 0) == name.endswith("_trained") for _, _, of, name in seen)
    assert len(seen) == len({name for *_, name in seen})


def test_statistics_are_those_of_the_trained_weights(net: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of what each batch norm reads, over the batches that training sees, is what it subtracts at the end."""
    from temper.techniques.quantization import aware_training

    fold, seen = aware_training.fold_quantized, []

    def folded(graph: Graph, norms: Any) -> None:
        for norm in norms[:1]:
            copy = graph.copy()
            (output,) = [node for node in copy.module.graph.nodes if node.op == "output"]
            (same,) = [node for node in copy.module.graph.nodes if node.name == norm.name]
            output.args = ((same.args[0],),)
            copy.module.recompile()
            with torch.no_grad():
                means = [copy.module(*inputs)[0].mean((0, 2, 3)) for inputs, _ in training_for(net).batches(SIZE, 0)]
            seen.append((torch.stack(means).mean(0), tensor_of(graph.module, norm.args[3])))
        fold(graph, norms)

    monkeypatch.setattr(aware_training, "fold_quantized", folded)
    trained(net, num_bits=2, epochs=3)
    ((expected, found),) = seen
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("a_batch", "count"), [(0.0, 6), (1.0, 5), (100.0, 3)])
def test_statistics_are_taken_from_fewer_batches_if_time_is_short(
    net: Graph, a_batch: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ends before its deadline, so that a tenth of the time remains; a few batches are taken in any case."""
    from temper.techniques.quantization import aware_training

    clock, deadlines, seen = [0.0], [], [0]
    fit, estimate = aware_training.fit, aware_training.re_estimate

    def noted(graph: Graph, groups: Any, training: Training, *rest: Any, **named: Any) -> Any:
        deadlines.append(training.deadline)
        return fit(graph, groups, training, *rest, **named)

    def estimating(graph: Graph, norms: Any, batches: Any) -> None:
        def slowly() -> Any:
            for each in batches:
                seen[0] += 1
                clock[0] += a_batch
                yield each

        clock[0] = 95.0
        estimate(graph, norms, slowly())

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(aware_training, "fit", noted)
    monkeypatch.setattr(aware_training, "re_estimate", estimating)
    monkeypatch.setattr(aware_training, "RE_ESTIMATED_LEAST", 3)
    context = context_for(net, training=replace(training_for(net), deadline=100.0))
    applied(QuantizationAwareTraining(epochs=2, batch=SIZE), net, context)
    assert deadlines == [90.0]
    assert seen == [count]
