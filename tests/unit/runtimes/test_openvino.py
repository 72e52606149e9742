import numpy as np
import pytest
import torch
from torch import Tensor, nn

from temper.core.runtime import Runner
from temper.graph.capture import capture
from temper.runtimes.openvino import COPIED_BYTES, OpenVino


class Split(nn.Module):
    """Two inputs, two outputs: images on a plane, and a row for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y, y.mean((2, 3)) * row


SMALL, LARGE = 8, 1 + int((COPIED_BYTES / 8) ** 0.5)


def inputs(batch: int, size: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((batch, 2, size, size), dtype=np.float32)
    return x, generator.standard_normal((batch, 3), dtype=np.float32)


@pytest.fixture(scope="module", params=[SMALL, LARGE], ids=["copied", "shared"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Runner, int]:
    torch.manual_seed(0)
    module, folder, runtime = Split().eval(), tmp_path_factory.mktemp("model"), OpenVino(precision="f32")
    example = tuple(map(torch.from_numpy, inputs(2, request.param)))
    graph = capture(module, (example, {}), names=["x", "row"])
    runtime.export(graph, folder)
    return module, runtime.load(folder, graph.schema, 1), request.param


def check(module: nn.Module, found: tuple[np.ndarray, ...], arrays: tuple[np.ndarray, ...]) -> None:
    with torch.no_grad():
        expected = module(*(torch.from_numpy(np.array(each)) for each in arrays))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-5)


def test_batches_may_change_from_call_to_call(loaded: tuple[nn.Module, Runner, int]) -> None:
    module, runner, size = loaded
    for seed, batch in enumerate((1, 1, 3, 1, 2, 1)):
        arrays = inputs(batch, size, seed)
        check(module, runner.run(*arrays), arrays)


def test_results_are_the_callers_own(loaded: tuple[nn.Module, Runner, int]) -> None:
    module, runner, size = loaded
    first, second = inputs(1, size, 1), inputs(1, size, 2)
    found = runner.run(*first)
    runner.run(*second)
    check(module, found, first)
    for each in found:
        each[...] = 0
    check(module, runner.run(*second), second)


def test_arrays_may_be_views_and_may_not_be_written_to(loaded: tuple[nn.Module, Runner, int]) -> None:
    module, runner, size = loaded
    x, row = inputs(1, size)
    turned = x.transpose(0, 1, 3, 2)
    check(module, runner.run(turned, row), (turned, row))
    x.flags.writeable = row.flags.writeable = False
    check(module, runner.run(x, row), (x, row))
    assert not x.flags.writeable


def test_inputs_stay_as_they_were(loaded: tuple[nn.Module, Runner, int]) -> None:
    _, runner, size = loaded
    arrays = inputs(1, size)
    before = [each.copy() for each in arrays]
    runner.run(*arrays)
    runner.run(*inputs(1, size, 5))
    for one, other in zip(arrays, before):
        np.testing.assert_array_equal(one, other)
