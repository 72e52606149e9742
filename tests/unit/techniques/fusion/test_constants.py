from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from temper.core.context import Context
from temper.core.errors import NoEffect
from temper.core.technique import applied
from temper.graph.facts import float_layers
from temper.hardware.detect import this_host
from temper.runtimes.openvino import OpenVino
from temper.techniques.fusion.constants import ConstantFolding
from temper.techniques.quantization.post_training import PostTrainingQuantization
from tests import models
from tests.models import graph_of, images, randomized, rows, tokens

CONTEXT: Any = SimpleNamespace()


class Embeds(nn.Module):
    """Tokens (batch, length) with position embeddings that are looked up at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(11, 8), nn.Embedding(16, 8)
        self.norm, self.layer = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.positions(torch.arange(ids.shape[1]))
        return self.layer(self.norm(self.words(ids) + positions))


def test_positions_become_one_tensor_that_can_be_trained() -> None:
    model = Embeds().eval()
    graph = graph_of(model, tokens())
    result = applied(ConstantFolding(), graph, CONTEXT)
    targets = [str(node.target) for node in result.module.graph.nodes if node.op == "call_function"]
    assert targets.count("aten.embedding.default") == 1
    assert not any("arange" in each for each in targets)
    larger = torch.cat((tokens(), tokens()))
    torch.testing.assert_close(result(larger)[0], model(larger))
    stored = dict(result.module.named_parameters())
    assert "positions.weight" not in stored
    assert any(each.shape[-2:] == (tokens().shape[1], 8) and each.requires_grad for each in stored.values())


def test_standardized_weights_become_weights_that_can_be_quantized() -> None:
    graph = graph_of(randomized(models.WeightStandardized()), images())
    assert not float_layers(graph)
    assert float_layers(applied(ConstantFolding(), graph, CONTEXT))


def test_openvino_takes_the_quantized_sum_of_words_and_positions(tmp_path: Path) -> None:
    """With a quantizer on the positions, its low-precision passes fail ("index '0' out of range")."""
    pytest.importorskip("openvino")
    runtime = OpenVino(precision="f32")
    context = Context(runtime=runtime, target=this_host(), seed=0, calibration=(tokens().numpy(),))
    folded = applied(ConstantFolding(), graph_of(randomized(Embeds()), tokens()), context)
    graph = applied(PostTrainingQuantization(), folded, context)
    runtime.export(graph, tmp_path)
    (found,) = runtime.load(tmp_path, graph.schema, 1).run(tokens().numpy())
    torch.testing.assert_close(torch.from_numpy(found), graph(tokens())[0], rtol=1e-3, atol=1e-3)


def test_nothing_to_fold_is_no_effect() -> None:
    with pytest.raises(NoEffect, match="computed from stored tensors alone"):
        ConstantFolding().apply(graph_of(randomized(models.Perceptron()), rows()), CONTEXT)
