import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from temper.core.errors import NoEffect
from temper.core.graph import Graph
from temper.graph.capture import capture
from temper.graph.patterns.attention import fused_attentions
from temper.techniques.fusion.attention import AttentionFusion
from temper.techniques.fusion.attention_products import AttentionProducts

CONTEXT: Any = SimpleNamespace()
TOKENS, HEADS, WIDTH = 7, 3, 4
Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Attends(nn.Module):
    """Query, key and value (batch, heads, tokens, width) of one projection, and a mask (batch, 1, 1, tokens)."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.layer = form, nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.layer(x).view(-1, TOKENS, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        return self.form(query, key, value, mask[:, None, None, :])


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, TOKENS, HEADS * WIDTH, generator=generator), torch.randn(
        batch, TOKENS, generator=generator
    )


def captured(form: Form) -> Graph:
    torch.manual_seed(0)
    return capture(Attends(form).eval(), (inputs(2), {}), names=("x", "mask"))


def products(graph: Graph) -> int:
    return sum(str(node.target) in ("aten.matmul.default", "aten.bmm.default") for node in graph.module.graph.nodes)


def flat(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


WRITTEN: dict[str, Form] = {
    "division": lambda q, k, v, m: (q @ k.transpose(-2, -1) / math.sqrt(WIDTH)).softmax(-1) @ v,
    "dropout": lambda q, k, v, m: F.dropout(torch.softmax(q @ k.mT / 2 + m, -1), 0.1, False) @ v,
    "mask inside the scale": lambda q, k, v, m: F.softmax((q @ k.permute(0, 1, 3, 2) + m) * 0.3, dim=3) @ v,
    "scaled query": lambda q, k, v, m: torch.matmul(F.softmax((q * 0.5) @ k.mT, dim=-1), v),
    "two masks": lambda q, k, v, m: (m + q @ k.mT + m.mT).softmax(-1) @ v,
    "fill": lambda q, k, v, m: (q @ k.mT).masked_fill(m > 0.5, -1e9).softmax(-1) @ v,
    "bmm": lambda q, k, v, m: torch.bmm(torch.bmm(flat(q), flat(k).mT).div(2).softmax(-1), flat(v)),
    "baddbmm": lambda q, k, v, m: torch.bmm(
        torch.baddbmm(flat(m.expand(-1, HEADS, TOKENS, TOKENS)), flat(q), flat(k).mT, beta=0.7, alpha=0.5).softmax(-1),
        flat(v),
    ),
    "keys never transposed": lambda q, k, v, m: (q.mT @ k).softmax(-1) @ v.mT,
}
FUSED: dict[str, Form] = {
    "plain": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v),
    "additive mask": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.3),
    "boolean mask": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m > -1),
    "causal": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, is_causal=True),
}
OTHERS: dict[str, Form] = {
    "another axis": lambda q, k, v, m: (q @ k.mT).softmax(-2) @ v,
    "weights read twice": lambda q, k, v, m: (lambda weights: weights @ v + weights.sum(-1, keepdim=True))(
        (q @ k.mT).softmax(-1)
    ),
    "no product": lambda q, k, v, m: (q + k).softmax(-1) @ v.mT,
    "a soft fill": lambda q, k, v, m: (q @ k.mT).masked_fill(m > 0.5, -1.0).softmax(-1) @ v,
    "squared scores": lambda q, k, v, m: ((q @ k.mT) ** 2).softmax(-1) @ v,
}


@pytest.mark.parametrize("form", WRITTEN.values(), ids=WRITTEN)
def test_every_form_becomes_one_operator(form: Form) -> None:
    graph = captured(form)
    result = AttentionFusion().apply(graph.copy(), CONTEXT)
    assert len(fused_attentions(result)) == 1
    assert products(result) == 0
    torch.testing.assert_close(result(*inputs(5))[0], graph(*inputs(5))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", OTHERS.values(), ids=OTHERS)
def test_what_is_no_attention_stays(form: Form) -> None:
    with pytest.raises(NoEffect, match="no softmax between two matrix products"):
        AttentionFusion().apply(captured(form), CONTEXT)


@pytest.mark.parametrize("form", FUSED.values(), ids=FUSED)
def test_products_and_back(form: Form) -> None:
    graph = captured(form)
    written = AttentionProducts().apply(graph.copy(), CONTEXT)
    assert (products(written), len(fused_attentions(written))) == (2, 0)
    again = AttentionFusion().apply(written.copy(), CONTEXT)
    assert (products(again), len(fused_attentions(again))) == (0, 1)
    for each in (written, again):
        torch.testing.assert_close(each(*inputs(5))[0], graph(*inputs(5))[0], rtol=1e-4, atol=1e-5)


def test_grouped_queries_stay() -> None:
    graph = captured(lambda q, k, v, m: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True))
    with pytest.raises(NoEffect, match="grouped queries"):
        AttentionProducts().apply(graph, CONTEXT)
