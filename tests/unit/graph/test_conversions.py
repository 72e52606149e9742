"""Conversions that are made once: equal graphs share one, and any difference makes another."""

from pathlib import Path

import torch

from temper.graph.conversions import converted, digest, kept_in
from temper.testing.graphs import examples


def test_an_equal_graph_is_converted_once(tmp_path: Path) -> None:
    first, again = (next(iter(examples())).graph for _ in range(2))
    changed = again.copy()
    with torch.no_grad():
        next(changed.module.parameters()).add_(1e-3)
    made = []

    def convert(file: Path) -> None:
        made.append(file)
        file.write_text(str(len(made)))

    def result(graph: object, name: str = "model.onnx") -> str:
        place = tmp_path / "out"
        place.mkdir(exist_ok=True)
        converted(graph, place / name, convert)  # type: ignore[arg-type]
        return (place / name).read_text()

    with kept_in(tmp_path / "kept"):
        assert [result(first), result(again), result(changed), result(first, "model.other")] == ["1", "1", "2", "3"]
    assert result(first) == "4", "nothing is kept outside of the block"


def test_a_digest_is_of_the_content() -> None:
    graphs = [example.graph for example in examples()]
    assert len({digest(graph) for graph in graphs}) == len(graphs)
    assert digest(graphs[0]) == digest(graphs[0].copy())
