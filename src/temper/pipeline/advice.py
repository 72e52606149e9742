"""What hurts the speed and the accuracy of an artifact, and the remedy: rules over its kernels and layers."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from temper.core.explanation import Advice, Kernel, Layer

WORTH_SAYING = 0.05
"""The least share of the time, or of the sensitivity, that is worth a person's attention."""
WIDTH = 16
"""Output channels that a vector register of 512 bits holds as 32-bit sums: other counts leave lanes idle."""
CONVERSIONS = ("Reorder", "Convert", "Transpose", "QuantizeLinear", "DequantizeLinear", "FakeQuantize", "ReorderInput")
BYTES = "bytes"
"""The precision of a compiled kernel that only moves or converts integers."""
FEW_LAYERS = 3
UNEVEN = 4.0
"""A layer is sensitive if it loses this many times the layers' mean."""
LARGEST_ERROR = 1e-3
"""A relative squared error of the inputs above this (30 dB) is more than 8 bits usually leave."""


def advise(
    call_s: float, kernels: Sequence[Kernel], layers: Sequence[Layer], *, trained: bool = False
) -> tuple[Advice, ...]:
    """Everything worth saying: speed first, then accuracy, the largest share first.

    Of a graph that was `trained` with its quantizers nothing is said of accuracy: without them it is another network.
    """
    found = (*_islands(kernels), *_conversions(kernels), *_widths(kernels, layers), *_overhead(call_s, kernels))
    found += tuple(_unpacked(kernels, layers))
    speed = sorted(found, key=lambda each: -each.share)
    losses = () if trained else (*_sensitive(layers), *_coarse(layers))
    accuracy = sorted(losses, key=lambda each: -each.share)
    return tuple(each for each in (*speed, *accuracy) if each.share >= WORTH_SAYING)


def _islands(kernels: Sequence[Kernel]) -> Iterator[Advice]:
    """Float kernels that stand between integer ones."""
    runs = [(integers, list(run)) for integers, run in groupby(kernels, lambda each: each.precision.startswith("int"))]
    inner = [kernel for integers, run in runs[1:-1] if not integers for kernel in run]
    inner = [kernel for kernel in inner if kernel.operator not in CONVERSIONS and kernel.precision != BYTES]
    if inner:
        share = _share(inner, kernels)
        largest = sorted(inner, key=lambda each: -each.seconds)[:FEW_LAYERS]
        names = ", ".join(f"{each.operator} {each.name}" for each in largest)
        yield Advice(
            hurts="speed",
            share=share,
            what=f"{len(inner)} float operators stand between integer ones, the slowest of them {names}",
            remedy="replace them by operators that the runtime has in integers: each border costs a conversion there "
            "and back",
        )


def _conversions(kernels: Sequence[Kernel]) -> Iterator[Advice]:
    converting = [kernel for kernel in kernels if kernel.operator in CONVERSIONS]
    yield Advice(
        hurts="speed",
        share=_share(converting, kernels),
        what=f"{len(converting)} operators only convert or reorder data",
        remedy="keep neighbouring layers in one precision and one layout: quantize whole stretches, or leave a small "
        "layer between float ones in float",
    )


def _widths(kernels: Sequence[Kernel], layers: Sequence[Layer]) -> Iterator[Advice]:
    total = sum(each.seconds for each in kernels)
    odd = [layer for layer in layers if layer.seconds and layer.shape[0] % WIDTH]
    if odd and total:
        names = ", ".join(f"{layer.name} ({layer.shape[0]})" for layer in odd[:FEW_LAYERS])
        yield Advice(
            hurts="speed",
            share=sum(layer.seconds or 0.0 for layer in odd) / total,
            what=f"{len(odd)} layers have output channels that are no multiple of {WIDTH}: {names}",
            remedy=f"widths that are multiples of {WIDTH} fill the vector registers: train or prune to such widths",
        )


def _unpacked(kernels: Sequence[Kernel], layers: Sequence[Layer]) -> Iterator[Advice]:
    """Layers whose weights have fewer bits than the kernels that compute them."""
    total = sum(each.seconds for each in kernels)
    few = [each for each in layers if each.weight is not None and each.weight.bits < 8 and each.precision == "int8"]
    if few and total:
        names = ", ".join(f"{layer.name} ({layer.weight.bits})" for layer in few[:FEW_LAYERS] if layer.weight)
        yield Advice(
            hurts="speed",
            share=sum(layer.seconds or 0.0 for layer in few) / total,
            what=f"{len(few)} layers have weights of fewer than 8 bits, for which this runtime has no kernels: {names}",
            remedy="they make the file smaller and a call no faster: where speed is what counts, 8 bits lose less",
        )


def _overhead(call_s: float, kernels: Sequence[Kernel]) -> Iterator[Advice]:
    inside = sum(each.seconds for each in kernels)
    if kernels and inside < call_s:
        yield Advice(
            hurts="speed",
            share=1 - inside / call_s,
            what=f"of a call's {call_s * 1e6:.0f} µs, {(call_s - inside) * 1e6:.0f} µs pass outside of the "
            f"{len(kernels)} operators",
            remedy="the runtime's own overhead a call weighs most on small models: more examples a call, or fewer and "
            "larger operators",
        )


def _sensitive(layers: Sequence[Layer]) -> Iterator[Advice]:
    known = [layer for layer in layers if layer.sensitivity is not None]
    total = sum(layer.sensitivity or 0.0 for layer in known)
    if not total:
        return
    worst = sorted(known, key=lambda each: -(each.sensitivity or 0.0))[:FEW_LAYERS]
    worst = [layer for layer in worst if (layer.sensitivity or 0.0) * len(known) > UNEVEN * total]
    if worst:
        yield Advice(
            hurts="accuracy",
            share=sum(layer.sensitivity or 0.0 for layer in worst) / total,
            what=f"{len(worst)} of {len(known)} layers cause most of what quantization loses: "
            f"{', '.join(layer.name for layer in worst)}",
            remedy="leave them in float, or take their ranges otherwise: a search with a larger budget tries both",
        )


def _coarse(layers: Sequence[Layer]) -> Iterator[Advice]:
    known = [layer for layer in layers if layer.input is not None]
    coarse = [layer for layer in known if layer.input is not None and layer.input.relative_error > LARGEST_ERROR]
    if coarse:
        names = ", ".join(layer.name for layer in coarse[:FEW_LAYERS])
        yield Advice(
            hurts="accuracy",
            share=len(coarse) / len(known),
            what=f"inputs of {len(coarse)} layers lose over {LARGEST_ERROR:.1%} of their power to rounding: {names}",
            remedy="a few large values stretch their range: a search with a larger budget tries to cut it, and to even "
            "the channels out",
        )


def _share(some: Sequence[Kernel], kernels: Sequence[Kernel]) -> float:
    total = sum(each.seconds for each in kernels)
    return sum(each.seconds for each in some) / total if total else 0.0
