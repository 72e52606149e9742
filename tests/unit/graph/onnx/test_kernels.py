"""Which nodes a kernel computes, by what runtimes call it."""

import onnx
import pytest

from temper.core.explanation import Kernel
from temper.graph.onnx.kernels import attributed

MODEL = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["" : 17]>
two (float[n, 2] x) => (float[n, 2] y)
<float[2, 2] first_weight = {1, 2, 3, 4}, float[2] bias = {1, 2}, float[2, 2] second_weight = {1, 2, 3, 4}> {
  [first] hidden = MatMul(x, first_weight)
  [sum] shifted = Add(hidden, bias)
  [relu] bent = Relu(shifted)
  [second] last = MatMul(bent, second_weight)
  [end] y = Tanh(last)
}
""")


def kernel(operator: str, *names: str) -> Kernel:
    return Kernel(name=operator, operator=operator, precision="int8", seconds=1.0, covers=names)


def covered(*kernels: Kernel) -> list[tuple[str, ...]]:
    return [each.covers for each in attributed(kernels, MODEL)]


@pytest.mark.parametrize("operator", ["FullyConnected", "FusedGemm", "DynamicQuantizeMatMul"])
def test_a_product_named_after_what_was_merged_into_it_computes_the_product(operator: str) -> None:
    assert covered(kernel(operator, "relu"), kernel(operator, "y")) == [("first", "relu"), ("second", "end")]
    assert covered(kernel(operator, "bent", "sum"), kernel(operator, "last")) == [("first", "sum", "relu"), ("second",)]


def test_other_kernels_claim_no_product_and_no_product_is_taken_from_its_kernel() -> None:
    assert covered(kernel("Convert", "relu"), kernel("Subgraph", "end")) == [("relu",), ("end",)]
    taken = covered(kernel("MatMul", "first"), kernel("MatMul", "relu"), kernel("MatMul", "last"))
    assert taken == [("first",), ("relu",), ("second",)]
    # A kernel between the two has the value that the second reads, so that nothing upstream can be the second's.
    assert covered(kernel("Eltwise", "sum"), kernel("Gemm", "relu")) == [("sum",), ("relu",)]


def test_its_own_name_counts_more_than_the_names_that_others_list() -> None:
    listed = covered(kernel("FullyConnected", "y", "relu"), kernel("Eltwise", "relu"), kernel("Reorder", "elsewhere"))
    assert listed == [("second", "end"), ("relu",), ()]
