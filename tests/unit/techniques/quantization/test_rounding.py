import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.errors import NoEffect, TrialError, UsageError
from temper.core.graph import Graph
from temper.core.technique import applied
from temper.graph.facts import weighted_layers
from temper.graph.surgery import set_tensor, tensor_of
from temper.hardware.detect import this_host
from temper.runtimes.openvino import OpenVino
from temper.techniques.fusion.batch_norm import BatchNormFusion
from temper.techniques.fusion.constants import ConstantFolding
from temper.techniques.quantization._moments import Lockstep, patches
from temper.techniques.quantization.post_training import PostTrainingQuantization
from temper.techniques.quantization.rounding import Rounding
from temper.techniques.quantization.weight_only import WeightOnlyQuantization
from tests.models import Residual, Transformer, graph_of, images, randomized, tokens

BITS = 3


def context(calibration: Tensor) -> Context:
    return Context(runtime=OpenVino(), target=this_host(), seed=0, calibration=(calibration.numpy(),))


def narrowed(graph: Graph) -> Graph:
    """The quantized graph with weights of BITS bits, one scale an output channel."""
    graph = graph.copy()
    bound = 2 ** (BITS - 1) - 1
    for layer in weighted_layers(graph):
        quantizer = layer.args[1]
        weight, scale = (tensor_of(graph.module, each) for each in quantizer.args[:2])
        set_tensor(graph.module, quantizer.args[1].target, 0.8 * weight.detach().flatten(1).abs().amax(1) / bound)
        quantizer.args = (*quantizer.args[:3], -bound, bound, 0)
        assert scale.shape == (len(weight),)
    graph.module.recompile()
    return graph


@pytest.fixture(scope="module")
def convolutions() -> tuple[Graph, Graph]:
    """Float and quantized."""
    graph = graph_of(randomized(Residual()).eval(), images())
    fused = applied(BatchNormFusion(), graph, context(images(64)))
    return fused, narrowed(applied(PostTrainingQuantization(), fused, context(images(64))))


@pytest.fixture(scope="module")
def linears() -> tuple[Graph, Graph]:
    graph = applied(ConstantFolding(), graph_of(randomized(Transformer()).eval(), tokens()), context(tokens(64)))
    return graph, narrowed(applied(PostTrainingQuantization(), graph, context(tokens(64))))


def error(exact: Graph, graph: Graph, inputs: Tensor) -> float:
    with torch.no_grad():
        return float(((graph(inputs)[0] - exact(inputs)[0]) ** 2).mean())


def test_convolutions_err_less_on_inputs_never_seen(convolutions: tuple[Graph, Graph]) -> None:
    exact, nearest = convolutions
    rounded = applied(Rounding(), nearest, context(images(64)))
    assert error(exact, rounded, images(50)) < 0.6 * error(exact, nearest, images(50))


def test_linears_err_less_on_inputs_never_seen(linears: tuple[Graph, Graph]) -> None:
    exact, nearest = linears
    rounded = applied(Rounding(), nearest, context(tokens(256)))
    assert error(exact, rounded, tokens(200)) < 0.6 * error(exact, nearest, tokens(200))


@pytest.mark.parametrize("group_size", [32, 64])
def test_weights_with_a_scale_a_group_err_less_on_inputs_never_seen(group_size: int) -> None:
    torch.manual_seed(0)  # the layers draw their weights from the global generator
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, 64, generator=generator)

    def correlated(count: int) -> Tensor:
        return torch.randn(count, 64, generator=generator) @ mixing

    model = randomized(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8))).eval()
    seen, unseen = correlated(512), correlated(300)
    exact = graph_of(model, seen)
    nearest = applied(WeightOnlyQuantization(bits=4, group_size=group_size), exact, context(seen))
    rounded = applied(Rounding(), nearest, context(seen))
    assert error(exact, rounded, unseen) < 0.6 * error(exact, nearest, unseen)
    for layer in weighted_layers(rounded):
        _, scale, _, low, high, _ = layer.args[1].args
        weight, scales = tensor_of(rounded.module, layer.args[1].args[0]), tensor_of(rounded.module, scale)
        multiples = weight / scales.repeat_interleave(weight.shape[1] // scales.shape[1], 1)
        assert scales.shape[1] == weight.shape[1] // group_size
        assert torch.allclose(multiples, multiples.round().clamp(low, high), atol=1e-4)


def test_each_layer_errs_less_on_inputs_never_seen(convolutions: tuple[Graph, Graph]) -> None:
    exact, nearest = convolutions
    rounded = applied(Rounding(), nearest, context(images(64)))
    truth = {layer.name: tensor_of(exact.module, layer.args[1]) for layer in weighted_layers(exact)}
    totals = []
    for graph in (nearest, rounded):
        layers = weighted_layers(graph)
        total = 0.0
        with torch.no_grad():
            runs = Lockstep(graph, [(images(50),)])
            for node in runs:
                if node in layers:
                    weight = truth[node.name]
                    got = graph_weight(graph, node)
                    for part, whole, gram in zip(
                        got.flatten(1).chunk(node_groups(node)),
                        weight.flatten(1).chunk(node_groups(node)),
                        runs.moments(node, weight.shape[2:]).gram,
                    ):
                        off, full = (part - whole).double(), whole.double()
                        total += float(((off @ gram) * off).sum() / ((full @ gram) * full).sum())
        totals.append(total)
    assert totals[1] < 0.8 * totals[0]


def graph_weight(graph: Graph, layer: torch.fx.Node) -> Tensor:
    """The weight of a layer behind its quantizer."""
    source, scale, zero, *rest = layer.args[1].args
    read = (tensor_of(graph.module, each) for each in (source, scale, zero))
    return torch.ops.temper.fake_quantize(*read, *rest)


def node_groups(layer: torch.fx.Node) -> int:
    return layer.args[6] if len(layer.args) > 6 else 1


def test_stored_weights_are_what_their_quantizers_make_of_them(convolutions: tuple[Graph, Graph]) -> None:
    rounded = applied(Rounding(), convolutions[1], context(images(64)))
    changed = 0
    for layer in weighted_layers(rounded):
        stored = tensor_of(rounded.module, layer.args[1].args[0])
        changed += int(torch.equal(graph_weight(rounded, layer), stored))
    assert changed == len(weighted_layers(rounded))


def test_the_promised_solver_is_asked(convolutions: tuple[Graph, Graph]) -> None:
    results = [
        applied(Rounding(solver=name), convolutions[1], context(images(64)))
        for name in ("lattice.gptq", "lattice.beam")
    ]
    weights = [[graph_weight(each, layer) for layer in weighted_layers(each)] for each in results]
    assert not all(map(torch.equal, *weights))
    with pytest.raises(UsageError, match=r"lattice\.none.*lattice\.beam"):
        Rounding(solver="lattice.none")


def test_nearest_rounding_of_exact_inputs_has_no_effect() -> None:
    graph = narrowed_linear()
    with pytest.raises(NoEffect, match="left the weights of all 1 layers"):
        applied(Rounding(solver="lattice.nearest"), graph, context(torch.eye(8)))


class Tied(nn.Module):
    """One weight, read twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


def test_a_shared_weight_stays() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    quantized = applied(PostTrainingQuantization(), graph_of(Tied(), x), context(x))
    with pytest.raises(NoEffect, match="no layer reads a weight of its own"):
        applied(Rounding(), quantized, context(x))


def narrowed_linear() -> Graph:
    """A linear layer whose inputs pass through integers exactly."""
    torch.manual_seed(0)
    x = torch.eye(8)
    return narrowed(applied(PostTrainingQuantization(), graph_of(nn.Linear(8, 4), x), context(x)))


def test_what_it_needs_is_checked(convolutions: tuple[Graph, Graph]) -> None:
    exact, quantized = convolutions
    with pytest.raises(TrialError, match="has quantizers"):
        applied(Rounding(), exact, context(images(8)))
    without = Context(runtime=OpenVino(), target=this_host(), seed=0)
    with pytest.raises(TrialError, match="calibration"):
        applied(Rounding(), quantized, without)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
        nn.Conv2d(4, 4, 3, dilation=2, groups=4),
        nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)),
        nn.Conv2d(4, 6, 3, padding="valid"),
        nn.Conv1d(4, 6, 5, stride=2, padding=2),
        nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1), stride=(1, 2, 1)),
        nn.Linear(9, 5, bias=False),
    ],
    ids=str,
)
def test_patches_times_weights_are_the_output(layer: nn.Module) -> None:
    rank = layer.weight.dim() - 2
    shape = (3, 4, *(9, 8, 7)[:rank]) if rank else (3, 2, 9)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    (node,) = weighted_layers(graph_of(layer, x))
    with torch.no_grad():
        expected = layer(x) if rank == 0 else layer(x) - layer.bias.reshape(-1, *[1] * rank)
        seen = patches(node, x, layer.weight.shape[2:])
        weight = layer.weight.flatten(1).reshape(len(seen), -1, seen.shape[2])
        got = (seen @ weight.mT).transpose(0, 1).reshape(-1, len(layer.weight))
    if rank:
        expected = expected.movedim(1, -1)
    torch.testing.assert_close(got, expected.reshape(-1, len(layer.weight)), atol=1e-5, rtol=1e-4)
