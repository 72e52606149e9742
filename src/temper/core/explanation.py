"""An explanation: where an artifact's time goes, what its integers cost in accuracy, and what would help."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One operator as a runtime executed it: seconds a call, precision, and the exported nodes that it computes.

    The runtime fuses, splits and adds operators of its own, so `covers` may name several nodes of the exported model,
    or none.
    """

    name: str
    operator: str
    precision: str
    seconds: float
    covers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What one quantizer does to one tensor.

    `original_range` is the least and the largest value before rounding; `scale_factor` the smallest and the largest
    scale, which differ where each channel has its own; `quantization_error` the mean squared error that rounding
    leaves, `relative_error` its share of the mean square of the values. `bits` are those that its integers need.
    """

    original_range: tuple[float, float]
    scale_factor: tuple[float, float]
    quantization_error: float
    relative_error: float
    bits: int = 8


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with a weight: what it costs, what executes it, and what its quantizers do.

    `node` is what it is called in the exported model, empty if it was not found there. `sensitivity` is the share of
    the outputs' mean square that is lost when this layer alone is quantized; `seconds` is None where the runtime's
    profile does not name the layer.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    node: str = ""
    flops: int | None = None
    seconds: float | None = None
    precision: str | None = None
    sensitivity: float | None = None
    weight: Quantized | None = None
    input: Quantized | None = None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What hurts speed or accuracy, where, and the remedy; `share` of the time or of the sensitivity."""

    hurts: Literal["speed", "accuracy"]
    share: float
    what: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Everything that is known of an artifact: `call_s` is a whole call, the kernels what it is made of.

    Without kernels, `untimed` says why and what to do.
    """

    call_s: float
    kernels: tuple[Kernel, ...]
    layers: tuple[Layer, ...]
    advice: tuple[Advice, ...] = ()
    untimed: str = ""

    def others(self) -> dict[str, list[Kernel]]:
        """The kernels that compute no layer, by operator, the slowest operator first."""
        layers = {layer.node for layer in self.layers}
        groups: dict[str, list[Kernel]] = {}
        for kernel in self.kernels:
            if not layers & set(kernel.covers):
                groups.setdefault(kernel.operator, []).append(kernel)
        return dict(sorted(groups.items(), key=lambda each: -sum(kernel.seconds for kernel in each[1])))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            call_s=fields["call_s"],
            kernels=tuple(Kernel(**{**each, "covers": tuple(each["covers"])}) for each in fields["kernels"]),
            layers=tuple(layer_from_json(each) for each in fields["layers"]),
            advice=tuple(Advice(**each) for each in fields["advice"]),
            untimed=fields.get("untimed", ""),
        )


def layer_from_json(fields: Mapping[str, Any]) -> Layer:
    """Read the JSON form of a layer."""
    quantized = {name: _quantized(fields[name]) for name in ("weight", "input")}
    return Layer(**{**fields, **quantized, "shape": tuple(fields["shape"])})


def _quantized(fields: Mapping[str, Any] | None) -> Quantized | None:
    if fields is None:
        return None
    pairs = {name: tuple(fields[name]) for name in ("original_range", "scale_factor")}
    return Quantized(**{**fields, **pairs})
