import subprocess
import sys

import numpy as np
import pytest

from temper.core.data import Data, Examples
from temper.core.errors import DataError, TaskError
from temper.core.metric import Metric
from temper.core.task import Task

INPUTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_one_source_or_parts_by_name() -> None:
    assert Data(INPUTS).everything is INPUTS
    assert Data(proof=INPUTS, training=[1]).training == [1]


def test_everything_excludes_the_named_parts() -> None:
    with pytest.raises(DataError, match="one source to split and also training"):
        Data(INPUTS, training=INPUTS)


@pytest.mark.parametrize("parts", [{}, {"training": INPUTS}, {"calibration": INPUTS, "training": INPUTS}])
def test_something_must_be_there_to_judge_on(parts: dict[str, object]) -> None:
    with pytest.raises(DataError, match="nothing to judge a model on"):
        Data(**parts)


def test_examples_know_their_style_and_layout() -> None:
    single = Examples(inputs=(INPUTS,))
    pair = Examples(inputs=(INPUTS, INPUTS[:, 0]))
    named = Examples(inputs=(INPUTS,), names=("pixels",))
    assert (single.style, pair.style, named.style) == ("tensor", "tuple", "dict")
    assert [str(spec) for spec in pair.layout] == ["input_0: float32[batch, 3]", "input_1: float32[batch]"]
    assert named.layout[0].name == "pixels"


def test_take_keeps_order_and_repeats() -> None:
    examples = Examples(inputs=(INPUTS,), targets=np.arange(4))
    taken = examples.take(np.array([2, 0, 2]))
    assert taken.targets is not None
    assert taken.targets.tolist() == [2, 0, 2]
    np.testing.assert_array_equal(taken.inputs[0], INPUTS[[2, 0, 2]])
    assert len(taken) == 3


def test_orient_is_its_own_inverse() -> None:
    loss = Metric(name="loss", score=lambda outputs, targets: 0.0, per_example=False, higher_is_better=False)
    assert loss.orient(0.5) == -0.5
    np.testing.assert_array_equal(loss.orient(loss.orient(INPUTS.astype(np.float64))), INPUTS)


def test_the_nouns_import_without_torch() -> None:
    code = "import sys, temper.core.data, temper.core.metric, temper.core.task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestTask:
    def test_a_module_is_itself_and_a_function_is_called_once(self) -> None:
        from torch import nn

        model = nn.Linear(3, 2)
        assert Task(model, INPUTS).module() is model
        calls = []
        lazy = Task(lambda: calls.append(1) or nn.Linear(3, 2), INPUTS)  # type: ignore[func-returns-value]
        assert not calls
        assert lazy.module() is lazy.module()
        assert len(calls) == 1

    @pytest.mark.parametrize(("model", "said"), [("model.onnx", "type str"), (None, "None"), (dict, "the class dict")])
    def test_what_is_no_model(self, model: object, said: str) -> None:
        with pytest.raises(TaskError, match=said):
            Task(model, INPUTS)  # type: ignore[arg-type]

    def test_no_data(self) -> None:
        with pytest.raises(TaskError, match="no data"):
            Task(lambda: None, None)  # type: ignore[arg-type, return-value]

    def test_a_function_that_fails_or_returns_something_else(self) -> None:
        def broken() -> object:
            raise OSError("no such checkpoint")

        with pytest.raises(TaskError, match="broken failed: OSError: no such checkpoint"):
            Task(broken, INPUTS).module()  # type: ignore[arg-type]
        with pytest.raises(TaskError, match="returned an object of type int"):
            Task(lambda: 3, INPUTS).module()  # type: ignore[arg-type, return-value]
