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
