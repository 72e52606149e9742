"""What temper is compared with: other ways to run the same model on this machine, one library a file.

A file holds `build(subject, folder, **options)`, which writes what the library needs into an empty folder, and
`load(subject, folder, threads, **options)`, which returns a call from the arrays of one example to those of its
outputs. Both run in a process of their own. Options follow what the library's own documentation recommends; where it
offers several ways, all of them compete, and the column shows the fastest that keeps the quality.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.subject import Subject
from temper.core.schema import Array

Call = Callable[..., tuple[Array, ...]]
"""From the arrays of one example, batch axis included, to those of its outputs."""

CALIBRATION = 300
"""Examples that peers calibrate with, where the task has so many: what nncf takes by default."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way of running a model: the column of the table that it belongs to, and what is special about it."""

    column: str
    variant: str
    library: str
    options: Mapping[str, Any] = field(default_factory=dict)
    transformers_only: bool = False

    @property
    def name(self) -> str:
        return f"{self.column}: {self.variant}"

    @property
    def slug(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())

    def suits(self, subject: Subject) -> bool:
        from_onnx = subject.from_onnx and self.library in ("pytorch", "pt2e")
        return not from_onnx and (subject.transformer or not self.transformers_only)

    def build(self, subject: Subject, folder: Path) -> None:
        self._module().build(subject, folder, **self.options)

    def load(self, subject: Subject, folder: Path, threads: int) -> Call:
        call: Call = self._module().load(subject, folder, threads, **self.options)
        return call

    def _module(self) -> Any:
        return importlib.import_module(f"peers.{self.library}")


PEERS = (
    Peer(column="torch eager", variant="fp32", library="pytorch"),
    Peer(column="torch.compile", variant="fp32, frozen", library="pytorch", options={"compiled": True}),
    Peer(
        column="torch.compile",
        variant="bf16 autocast, frozen",
        library="pytorch",
        options={"compiled": True, "bfloat16": True},
    ),
    Peer(column="ONNX Runtime fp32", variant="all optimizations", library="onnxruntime"),
    Peer(
        column="ONNX Runtime int8",
        variant="static, QDQ, U8 activations, S8 weights per channel",
        library="onnxruntime",
        options={"quantized": "static"},
    ),
    Peer(
        column="ONNX Runtime int8",
        variant="dynamic, S8 weights per channel",
        library="onnxruntime",
        options={"quantized": "dynamic"},
        transformers_only=True,
    ),
    Peer(column="OpenVINO", variant="default precision", library="openvino"),
    Peer(column="OpenVINO", variant="f32", library="openvino", options={"precision": "f32"}),
    Peer(
        column="OpenVINO + nncf.quantize",
        variant="performance preset",
        library="openvino",
        options={"preset": "performance"},
    ),
    Peer(column="OpenVINO + nncf.quantize", variant="mixed preset", library="openvino", options={"preset": "mixed"}),
    Peer(
        column="OpenVINO + nncf.quantize",
        variant="mixed preset, accurate bias correction",
        library="openvino",
        options={"preset": "mixed", "fast_bias_correction": False},
    ),
    Peer(column="torchao PT2E", variant="X86InductorQuantizer, Inductor, frozen", library="pt2e"),
)
COLUMNS = tuple(dict.fromkeys(peer.column for peer in PEERS))


def named(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)
