from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from temper.core.errors import MetricError
from temper.core.metric import Metric
from temper.measure.metrics import class_axis, resolve, scores, settled, value

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(20, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 20)


def score(name: object, outputs: Any, targets: Any, original: Any = None) -> np.ndarray:
    return scores(resolve(name), outputs, targets, original)


class TestAccuracy:
    def test_multi_class(self) -> None:
        np.testing.assert_array_equal(score("accuracy", LOGITS, LABELS), LOGITS.argmax(1) == LABELS)
        np.testing.assert_array_equal(score("accuracy", LOGITS, LABELS[:, None]), LOGITS.argmax(1) == LABELS)

    @pytest.mark.parametrize("shape", [(4,), (4, 1)])
    @pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_])
    def test_binary_logits_count_as_one_above_zero(self, shape: tuple[int, ...], dtype: type) -> None:
        logits = np.array([1.5, -2.0, 0.0, 3.0], dtype=np.float32).reshape(shape)
        assert score("accuracy", logits, np.array([1, 0, 0, 0], dtype=dtype)).tolist() == [1, 1, 1, 0]

    def test_dense_predictions_are_averaged_within_an_example_without_ignored_positions(self) -> None:
        labels = np.array([[0, 1, 1], [1, -100, -100]])
        logits = np.zeros((2, 4, 3), dtype=np.float32)
        logits[:, 1] = 1  # class 1 everywhere
        np.testing.assert_allclose(score("accuracy", logits, labels), [2 / 3, 1])
        np.testing.assert_allclose(score("accuracy", np.moveaxis(logits, 1, -1), labels), [2 / 3, 1])

    def test_logits_are_found_in_what_the_model_returns(self) -> None:
        expected = score("accuracy", LOGITS, LABELS)
        other = np.zeros((20, 7), dtype=np.float32)
        np.testing.assert_array_equal(score("accuracy", {"hidden": other, "logits": LOGITS}, LABELS), expected)
        np.testing.assert_array_equal(score("accuracy", {"head": LOGITS, "hidden": other}, LABELS), expected)
        np.testing.assert_array_equal(score("accuracy", (LOGITS, other), LABELS), expected)

    @pytest.mark.parametrize("labels", [LABELS + 4, LABELS - 3, LABELS + 0.5, LABELS[:, None].repeat(5, 1)])
    def test_targets_that_are_no_classes(self, labels: np.ndarray) -> None:
        with pytest.raises(MetricError, match=r"classes|class numbers"):
            score("accuracy", LOGITS, labels)

    def test_nan_never_passes_for_a_class(self) -> None:
        with pytest.raises(MetricError, match="NaN"):
            score("accuracy", np.full_like(LOGITS, np.nan), LABELS)


class TestCrossEntropy:
    @pytest.mark.parametrize("scale", [1.0, 1e4])
    def test_equals_torch(self, scale: float) -> None:
        expected = functional.cross_entropy(
            torch.tensor(LOGITS * scale, dtype=torch.float64), torch.tensor(LABELS), reduction="none"
        )
        np.testing.assert_allclose(score("cross_entropy", LOGITS * np.float32(scale), LABELS), -expected, rtol=1e-6)

    def test_binary_equals_torch(self) -> None:
        labels = (LABELS > 2).astype(np.float32)
        expected = functional.binary_cross_entropy_with_logits(
            torch.tensor(LOGITS[:, 0]), torch.tensor(labels), reduction="none"
        )
        np.testing.assert_allclose(score("cross_entropy", LOGITS[:, :1], labels), -expected, rtol=1e-5)

    def test_dense_equals_torch(self) -> None:
        logits = RNG.normal(size=(3, 5, 4)).astype(np.float32)
        labels = np.array([[0, 1, 2, 3], [4, -100, 0, 1], [2, 2, -100, -100]])
        expected = [float(functional.cross_entropy(torch.tensor(a.T), torch.tensor(b))) for a, b in zip(logits, labels)]
        np.testing.assert_allclose(score("cross_entropy", logits, labels), -np.array(expected), rtol=1e-5)


class TestCosine:
    def test_the_original_scores_one_and_needs_no_labels(self) -> None:
        outputs = {"a": LOGITS, "b": RNG.normal(size=(20, 2, 3)).astype(np.float32)}
        assert score("cosine", outputs, None, outputs).tolist() == [1.0] * 20
        assert not resolve("cosine").needs_targets

    def test_closed_form_and_silent_outputs(self) -> None:
        original = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], dtype=np.float32)
        outputs = np.array([[1, 1], [-2, 0], [0, 0], [1, 0]], dtype=np.float32)
        np.testing.assert_allclose(score("cosine", outputs, None, original), [2**-0.5, -1, 1, 0])


class TestOwnMetrics:
    def test_a_function_of_examples(self) -> None:
        def distance(outputs: Any, targets: Any) -> Any:
            return np.abs(outputs[:, 0] - targets)

        distance.higher_is_better = False  # type: ignore[attr-defined]
        metric = settled(resolve(distance), LOGITS, LABELS, None)
        assert (metric.name, metric.per_example, metric.higher_is_better) == ("distance", True, False)
        np.testing.assert_allclose(scores(metric, LOGITS, LABELS, None), -np.abs(LOGITS[:, 0] - LABELS))
        chosen = np.array([0, 0, 3])
        expected = -np.abs(LOGITS[chosen, 0] - LABELS[chosen]).mean()
        assert value(metric, LOGITS, LABELS, None, chosen) == pytest.approx(expected)

    def test_a_function_of_the_set(self) -> None:
        metric = settled(resolve(lambda outputs, targets: outputs["x"].mean()), {"x": LOGITS}, LABELS, None)
        assert metric.per_example is False
        chosen = np.array([1, 2])
        assert value(metric, {"x": LOGITS}, LABELS, None, chosen) == pytest.approx(LOGITS[chosen].mean())
        with pytest.raises(MetricError, match="single number for 20 examples"):
            scores(metric, {"x": LOGITS}, LABELS, None)

    def test_tensors_are_numbers_too(self) -> None:
        result = score(lambda outputs, targets: torch.tensor(outputs).requires_grad_()[:, 0], LOGITS, LABELS)
        np.testing.assert_allclose(result, LOGITS[:, 0])

    def test_a_metric_is_taken_as_it_is(self) -> None:
        metric = Metric(
            name="mine", score=lambda outputs, original: outputs[:, 0], per_example=True, against="original"
        )
        assert resolve(metric) is metric
        np.testing.assert_allclose(score(metric, LOGITS, None, LOGITS), LOGITS[:, 0])


class TestTorchmetrics:
    def test_set_metric_on_the_first_output(self) -> None:
        torchmetrics = pytest.importorskip("torchmetrics")
        own = torchmetrics.F1Score(task="multiclass", num_classes=5, average="macro")
        metric = settled(resolve(own), (LOGITS,), LABELS, None)
        assert (metric.name, metric.per_example, metric.higher_is_better) == ("MulticlassF1Score", False, True)
        own.update(torch.tensor(LOGITS[:10]), torch.tensor(LABELS[:10]))
        expected = float(own.compute())
        assert value(metric, (LOGITS,), LABELS, None, np.arange(10)) == pytest.approx(expected)
        assert float(own.compute()) == expected  # the user's own state is left alone

    def test_lower_is_better_is_negated(self) -> None:
        torchmetrics = pytest.importorskip("torchmetrics")
        metric = resolve(torchmetrics.MeanSquaredError())
        assert value(metric, LOGITS, LOGITS + 2, None, np.arange(20)) == pytest.approx(-4)

    def test_unclear_direction_is_refused(self) -> None:
        torchmetrics = pytest.importorskip("torchmetrics")
        with pytest.raises(MetricError, match="whether higher is better"):
            resolve(torchmetrics.MeanMetric())


class TestFailures:
    @pytest.mark.parametrize(("metric", "said"), [("bleu", "no metric"), (3, "type int"), (Metric, "an instance")])
    def test_what_is_no_metric(self, metric: object, said: str) -> None:
        with pytest.raises(MetricError, match=said):
            resolve(metric)

    @pytest.mark.parametrize(
        ("metric", "said"),
        [
            (lambda outputs, targets: 1 / 0, "raised ZeroDivisionError.*test_metrics.py.*float32.20, 5.*int64.20."),
            (
                lambda outputs, targets: outputs[:, 0] * np.nan,
                "NaN or infinity for 20 of 20 examples; the outputs are f",
            ),
            (lambda outputs, targets: outputs[:3, 0], r"shape \(3,\) for 20 examples; it must return one score"),
            (lambda outputs, targets: "good", "returned str"),
            (lambda outputs, targets: None, "returned NoneType"),
        ],
    )
    def test_one_message_says_what_and_where(self, metric: Any, said: str) -> None:
        for call in (scores, settled):
            with pytest.raises(MetricError, match=said):
                call(resolve(metric), LOGITS, LABELS, None)

    def test_outputs_that_are_not_finite_are_named_as_the_reason(self) -> None:
        outputs = LOGITS.copy()
        outputs[3, 0] = np.inf
        with pytest.raises(MetricError, match="for 1 of 20 examples; the outputs hold 1 such"):
            score(lambda outputs, targets: outputs[:, 0], outputs, LABELS)
        with pytest.raises(MetricError, match="whole set"):
            value(resolve(lambda outputs, targets: outputs.sum()), outputs, LABELS, None, np.arange(20))

    def test_missing_or_shorter_reference(self) -> None:
        with pytest.raises(MetricError, match="there are none"):
            score("accuracy", LOGITS, None)
        with pytest.raises(MetricError, match="outputs for 20 examples and targets for 19"):
            score("accuracy", LOGITS, LABELS[:19])


@pytest.mark.parametrize(
    ("outputs", "targets", "axis"),
    [
        ((9, 5), (9,), 1),
        ((9, 5, 7), (9, 7), 1),
        ((9, 7, 5), (9, 7), 2),
        ((9, 5, 5), (9, 5), 1),
        ((9, 5), (9, 5), None),
        ((9,), (9,), None),
    ],
)
def test_class_axis(outputs: tuple[int, ...], targets: tuple[int, ...], axis: int | None) -> None:
    assert class_axis(outputs, targets) == axis
