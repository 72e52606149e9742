import json

import numpy as np
import pytest

from temper.core.schema import Schema, TensorSpec

IMAGE = TensorSpec(name="image", shape=(None, 3, 8), dtype="float32")
TOKENS = TensorSpec(name="tokens", shape=(None, 5), dtype="int64")
OUTPUT = TensorSpec(name="logits", shape=(None, 2), dtype="float32")
SCHEMA = Schema(inputs=(IMAGE, TOKENS), outputs=(OUTPUT, OUTPUT), nesting="tuple")


def arrays(batch: int = 4) -> list[np.ndarray]:
    return [np.zeros((batch, 3, 8), np.float32), np.zeros((batch, 5), np.int64)]


def test_json_form() -> None:
    assert Schema.from_json(json.loads(json.dumps(SCHEMA.to_json()))) == SCHEMA
    assert str(IMAGE) == "image: float32[batch, 3, 8]"


def test_what_fits() -> None:
    assert SCHEMA.mismatch(arrays()) is None
    assert SCHEMA.batch is None
    fixed = Schema(inputs=(TensorSpec(name="x", shape=(7, 2), dtype="float32"),), outputs=(OUTPUT,), nesting="tensor")
    assert fixed.batch == 7
    assert "takes x: float32[7, 2]" in str(fixed.mismatch([np.zeros((6, 2), np.float32)]))


def test_what_does_not_fit() -> None:
    image, tokens = arrays()
    wrong = {
        "1 inputs were given, and the model takes 2": [image],
        "'image' is float64": [image.astype(np.float64), tokens],
        "'tokens' is a list": [image, [[1] * 5] * 4],
        r"'image' has shape (4, 3, 9)": [np.zeros((4, 3, 9), np.float32), tokens],
        "'tokens' has shape (5,)": [image, tokens[0]],
        "disagree on the batch: (4, 3, 8), (3, 5)": [image, tokens[:3]],
    }
    for said, given in wrong.items():
        assert said in str(SCHEMA.mismatch(given))


def test_outputs_nest_as_the_models_own() -> None:
    first, second = np.zeros((1, 2)), np.ones((1, 2))
    assert SCHEMA.nested([first, second]) == (first, second)
    named = Schema(inputs=SCHEMA.inputs, outputs=(OUTPUT,), nesting="dict")
    assert named.nested([second])["logits"] is second
    alone = Schema(inputs=SCHEMA.inputs, outputs=(OUTPUT,), nesting="tensor")
    assert alone.nested([first]) is first


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []},
        {"outputs": []},
        {"nesting": "pile"},
        {"inputs": [{"name": "x", "shape": "wide", "dtype": "float32"}]},
        {"inputs": [{"name": "x", "shape": [None, 1.5], "dtype": "float32"}]},
        {"inputs": [{"name": "x", "shape": [None, True], "dtype": "float32"}]},
        {"inputs": [{"name": "x", "shape": [None, ""], "dtype": "float32"}]},
        {"inputs": [{"name": "x", "shape": [None], "dtype": "float99"}]},
        {"inputs": [{"name": "x", "shape": [None], "dtype": "f4"}]},
        {"inputs": [{"name": 3, "shape": [None], "dtype": "float32"}]},
        {"inputs": [{"shape": [None], "dtype": "float32"}]},
        {"inputs": "x"},
    ],
)
def test_what_is_no_schema(change: dict) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Schema.from_json({**SCHEMA.to_json(), **change})


class TestLength:
    NAMED = TensorSpec(name="tokens", shape=(None, "length"), dtype="int64")
    MASK = TensorSpec(name="mask", shape=(None, 1, "length"), dtype="int64")
    SCHEMA = Schema(inputs=(NAMED, MASK), outputs=(OUTPUT,), nesting="tensor")

    def given(self, batch: int, tokens: int, mask: int) -> list[np.ndarray]:
        return [np.zeros((batch, tokens), np.int64), np.zeros((batch, 1, mask), np.int64)]

    def test_json_form(self) -> None:
        assert Schema.from_json(json.loads(json.dumps(self.SCHEMA.to_json()))) == self.SCHEMA
        assert str(self.MASK) == "mask: int64[batch, 1, length]"

    def test_a_schema_from_before_there_were_lengths(self) -> None:
        assert not SCHEMA.dynamic_length
        assert IMAGE.length_axis is None
        assert self.SCHEMA.dynamic_length
        assert self.SCHEMA.dynamic_batch
        assert (self.NAMED.length_axis, self.MASK.length_axis) == (1, 2)

    def test_equal_names_are_equal_sizes(self) -> None:
        assert self.SCHEMA.mismatch(self.given(2, 5, 5)) is None
        assert self.SCHEMA.mismatch(self.given(3, 7, 7)) is None
        assert "disagree on the length: (2, 5), (2, 1, 6)" in str(self.SCHEMA.mismatch(self.given(2, 5, 6)))

    def test_sizes_to_make_inputs_up(self) -> None:
        assert self.MASK.sized(3, 9) == (3, 1, 9)
        assert self.MASK.sized(3)[2] == 16
