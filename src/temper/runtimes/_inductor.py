"""What the runtimes whose code Inductor makes have in common."""

from dataclasses import dataclass

from temper.core.knobs import knob
from temper.core.runtime import IntegerScheme, Runtime


@dataclass(frozen=True, kw_only=True)
class Inductor(Runtime):
    """Native code that Inductor, the compiler of `torch.compile`, makes for one kind of processor."""

    package = "torch"
    needs_torch = True
    compiles = True
    integers = IntegerScheme(symmetric_matmul=False, integer_bias=False)

    precision: str = knob("f32", among=("f32", "bf16"), help="what products of floats are computed in")

    @property
    def arithmetic(self) -> str:
        return "bfloat16" if self.precision == "bf16" else "float32"
