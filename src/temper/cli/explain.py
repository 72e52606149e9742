"""temper explain: where an artifact's time goes, what quantization costs it layer by layer, and what would help."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from temper.cli._options import Json, Trust

if TYPE_CHECKING:
    from rich.table import Table

    from temper.core.explanation import Explanation, Kernel, Layer, Quantized

BARS = 12
UNNAMED = "–"


def command(
    folder: Annotated[Path, typer.Argument(help="The run's folder, or the artifact's own.")],
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Explain an artifact: time, precision and quantization error of each layer, what hurts, and the remedy."""
    from temper.pipeline.explain import explain

    explanation = explain(folder, trust=trust)
    if as_json:
        print(json.dumps(explanation.to_json()))
        return
    from rich.markup import escape

    from temper.cli._tables import console

    screen = console()
    inside = sum(kernel.seconds for kernel in explanation.kernels)
    told = f"; its {len(explanation.kernels)} operators take {inside * 1e3:.3f} ms while they are profiled"
    screen.print(f"one call takes {explanation.call_s * 1e3:.3f} ms{told if explanation.kernels else ''}\n")
    if explanation.untimed:
        screen.print(f"no shares of the time: {escape(explanation.untimed)}\n")
    if explanation.layers:
        screen.print(_layers(explanation))
    elif explanation.kernels:
        screen.print(_kernels(explanation.kernels))
    for each in explanation.advice:
        screen.print(f"\n[bold]{each.hurts}, {each.share:.0%}[/bold] {escape(each.what)}")
        screen.print(f"  {escape(each.remedy)}")
    if not explanation.advice:
        screen.print("\nnothing stands out that would be worth changing")
    if not explanation.layers:
        screen.print("\nsensitivities and ranges are kept in the folder of the run: explain that to see them")


def _layers(explanation: "Explanation") -> "Table":
    table = _table(
        "layer", "time", "", "precision", "sensitivity", "bits", "weights", "error", "inputs", "scale", "error"
    )
    inside = sum(kernel.seconds for kernel in explanation.kernels)
    for layer in explanation.layers:
        share = None if layer.seconds is None or not inside else layer.seconds / inside
        table.add_row(layer.name, *_share(share), layer.precision or UNNAMED, *_quantized(layer))
    for operator, kernels in explanation.others().items():
        share = sum(kernel.seconds for kernel in kernels) / inside
        precisions = ", ".join(sorted({kernel.precision for kernel in kernels}))
        table.add_row(f"[dim]{len(kernels)} × {operator}[/dim]", *_share(share), precisions, *[""] * 7)
    return table


def _kernels(kernels: "tuple[Kernel, ...]") -> "Table":
    table = _table("operator", "time", "", "precision", "computes")
    inside = sum(kernel.seconds for kernel in kernels)
    for kernel in kernels:
        share = kernel.seconds / inside if inside else None
        table.add_row(kernel.operator, *_share(share), kernel.precision, ", ".join(kernel.covers[:3]))
    return table


def _share(share: float | None) -> tuple[str, str]:
    if share is None:
        return UNNAMED, ""
    return f"{share:.1%}", "█" * round(share * BARS) or "▏"


def _quantized(layer: "Layer") -> tuple[str, ...]:
    lost = UNNAMED if layer.sensitivity is None else f"{layer.sensitivity:.1e}"
    return (
        lost,
        _bits(layer),
        _range(layer.weight),
        _error(layer.weight),
        _range(layer.input),
        _scale(layer.input),
        _error(layer.input),
    )


def _bits(layer: "Layer") -> str:
    """Those of the weights and of what the layer reads, as the knob `layer_bits` writes them."""
    return "/".join(UNNAMED if each is None else str(each.bits) for each in (layer.weight, layer.input))


def _range(quantized: "Quantized | None") -> str:
    return UNNAMED if quantized is None else "{:.2g} to {:.2g}".format(*quantized.original_range)


def _scale(quantized: "Quantized | None") -> str:
    return UNNAMED if quantized is None else f"{quantized.scale_factor[1]:.2g}"


def _error(quantized: "Quantized | None") -> str:
    return UNNAMED if quantized is None else f"{quantized.relative_error:.1e}"


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number and name else "left", no_wrap=True)
    return table
