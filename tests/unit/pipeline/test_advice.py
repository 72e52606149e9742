"""The rules of advice, on kernels and layers that are made up to break one of them each."""

from dataclasses import replace

from temper.core.explanation import Advice, Explanation, Kernel, Layer, Quantized
from temper.pipeline.advice import advise


def kernel(operator: str, precision: str, microseconds: float, covers: str = "") -> Kernel:
    name = covers or operator
    return Kernel(name=name, operator=operator, precision=precision, seconds=microseconds * 1e-6, covers=(covers,))


def layer(name: str, channels: int = 64, **facts: object) -> Layer:
    return Layer(name=name, operator="linear", shape=(channels, 64), node=name, **facts)  # type: ignore[arg-type]


def rounded(relative_error: float) -> Quantized:
    return Quantized(
        original_range=(0, 1), scale_factor=(0.1, 0.1), quantization_error=relative_error, relative_error=relative_error
    )


def said(advice: tuple[Advice, ...], word: str) -> list[Advice]:
    return [each for each in advice if word in each.what]


GOOD = (kernel("MatMul", "int8", 50, "a"), kernel("MatMul", "int8", 50, "b"))


def test_a_sound_artifact_needs_no_advice() -> None:
    layers = (layer("a", seconds=5e-5, sensitivity=1e-6, input=rounded(1e-5)), layer("b", seconds=5e-5))
    assert advise(1e-4, GOOD, layers) == ()


def test_float_between_integers_is_an_island_and_float_at_the_ends_is_not() -> None:
    island = (GOOD[0], kernel("Softmax", "float32", 100), GOOD[1])
    (found,) = advise(2e-4, island, ())
    assert "Softmax" in found.what
    assert found.share == 0.5
    assert advise(2e-4, (kernel("Softmax", "float32", 100), *GOOD), ()) == ()


def test_conversions_overhead_and_widths() -> None:
    found = advise(1e-4, (*GOOD[:1], kernel("Reorder", "float32", 50)), ())
    assert [each.share for each in said(found, "convert")] == [0.5]
    found = advise(4e-4, GOOD, ())
    assert [round(each.share, 6) for each in said(found, "outside")] == [0.75]
    found = advise(1e-4, GOOD, (layer("a", channels=30, seconds=5e-5), layer("b", seconds=5e-5)))
    assert "a (30)" in said(found, "multiple of 16")[0].what


def test_of_a_trained_graph_nothing_is_said_that_holds_without_quantizers() -> None:
    layers = (*(layer(name, sensitivity=1e-6) for name in "abcdef"), layer("g", sensitivity=1e-2, input=rounded(1e-1)))
    assert {each.hurts for each in advise(1e-4, GOOD, layers)} == {"accuracy"}
    assert advise(1e-4, GOOD, layers, trained=True) == ()


def test_weights_of_few_bits_are_no_faster_where_kernels_have_8() -> None:
    few = replace(rounded(1e-3), bits=3)
    layers = (layer("a", seconds=5e-5, precision="int8", weight=few), layer("b", seconds=5e-5, precision="int8"))
    (found,) = advise(1e-4, GOOD, layers)
    assert (found.hurts, round(found.share, 6)) == ("speed", 0.5)
    assert "a (3)" in found.what
    assert advise(1e-4, GOOD, (replace(layers[0], precision="int4"), layers[1])) == ()


def test_what_loses_most_is_named_and_an_even_loss_is_not() -> None:
    even = tuple(layer(str(index), sensitivity=1e-5) for index in range(20))
    assert advise(1e-4, GOOD, even) == ()
    (found,) = advise(1e-4, GOOD, (*even, layer("worst", sensitivity=1e-2)))
    assert found.hurts == "accuracy"
    assert "worst" in found.what
    assert "leave them in float" in found.remedy


def test_inputs_with_outliers() -> None:
    layers = (layer("a", input=rounded(5e-3)), layer("b", input=rounded(1e-5)))
    (found,) = advise(1e-4, GOOD, layers)
    assert found.share == 0.5
    assert "a" in found.what


def test_an_explanation_reads_back_and_groups_what_is_no_layer() -> None:
    kernels = (*GOOD, kernel("Softmax", "float32", 10), kernel("Softmax", "float32", 10), kernel("Relu", "int8", 90))
    layers = (layer("a", input=rounded(0.1)), layer("b"))
    explanation = Explanation(call_s=1e-4, kernels=kernels, layers=layers, advice=advise(1e-4, kernels, layers))
    assert Explanation.from_json(explanation.to_json()) == explanation
    assert [(name, len(each)) for name, each in explanation.others().items()] == [("Relu", 1), ("Softmax", 2)]


def test_kernels_that_move_integers_are_no_float_island() -> None:
    assert advise(2e-4, (GOOD[0], kernel("cpp_fused_relu", "bytes", 100), GOOD[1]), ()) == ()
