import numpy as np
import pytest
import torch

from temper.techniques.quantization._ranges import BINS, Histogram, joint_range, weight_scales


def histogram(values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    return Histogram(low=low, high=high, counts=torch.histc(torch.from_numpy(values).float(), BINS, low, high))


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = round(-low / step)
    quantized = (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
    return float(((quantized - values) ** 2).mean())


@pytest.fixture
def heavy_tailed() -> np.ndarray:
    return np.random.default_rng(0).standard_t(3, 200_000)


def test_minmax_is_the_extremes_and_holds_zero() -> None:
    values = np.random.default_rng(0).uniform(2.0, 5.0, 1000)
    low, high = joint_range([histogram(values)], "minmax", 99.9, symmetric=False)
    assert low == 0.0
    assert high == pytest.approx(values.max())


def test_symmetric_ranges_mirror() -> None:
    values = np.random.default_rng(0).uniform(-1.0, 3.0, 1000)
    low, high = joint_range([histogram(values)], "minmax", 99.9, symmetric=True)
    assert -low == high == pytest.approx(values.max())


def test_percentile_agrees_with_numpy(heavy_tailed: np.ndarray) -> None:
    low, high = joint_range([histogram(heavy_tailed)], "percentile", 99.0, symmetric=False)
    bin_width = (heavy_tailed.max() - heavy_tailed.min()) / BINS
    expected = np.percentile(heavy_tailed, [0.5, 99.5])
    assert np.abs(np.asarray([low, high]) - expected).max() <= bin_width


def test_least_error_beats_the_full_range_and_the_percentile_on_heavy_tails(heavy_tailed: np.ndarray) -> None:
    ranges = {
        method: joint_range([histogram(heavy_tailed)], method, 99.0, symmetric=False)
        for method in ("minmax", "percentile", "mse")
    }
    errors = {method: squared_error(heavy_tailed, *ends) for method, ends in ranges.items()}
    assert errors["mse"] < errors["minmax"]
    assert errors["mse"] < errors["percentile"]


def test_the_ends_of_a_lopsided_range_are_clipped_apart() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.uniform(-1.0, 10.0, 1_000_000), [-20.0]])
    low, high = joint_range([histogram(values)], "mse", 99.0, symmetric=False)
    assert low > -10.0
    assert high > 9.0
    mirrored = joint_range([histogram(values)], "mse", 99.0, symmetric=True)
    assert mirrored[0] == -mirrored[1]


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_activations_of_one_quantizer_are_clipped_for_all_of_them(method: str, heavy_tailed: np.ndarray) -> None:
    wide = np.random.default_rng(1).uniform(-60.0, 60.0, 200_000)
    alone = joint_range([histogram(heavy_tailed)], method, 99.0, symmetric=True)
    both = joint_range([histogram(heavy_tailed), histogram(wide)], method, 99.0, symmetric=True)
    assert alone[1] < 0.9 * max(abs(heavy_tailed))
    assert both[1] > 55.0


def test_entropy_clips_a_lonely_outlier_and_keeps_uniform_values() -> None:
    generator = np.random.default_rng(0)
    normal = np.concatenate([generator.normal(size=200_000), [30.0, -30.0]])
    assert joint_range([histogram(normal)], "entropy", 99.0, symmetric=True)[1] < 15.0
    uniform = generator.uniform(-1.0, 1.0, 200_000)
    assert joint_range([histogram(uniform)], "entropy", 99.0, symmetric=True)[1] > 0.97


def test_least_error_keeps_the_range_of_uniform_values() -> None:
    values = np.random.default_rng(0).uniform(0.0, 1.0, 100_000)
    low, high = joint_range([histogram(values)], "mse", 99.0, symmetric=False)
    assert low == 0.0
    assert high > 0.97


def test_weight_scales_match_a_search_by_hand() -> None:
    weight = torch.from_numpy(np.random.default_rng(0).standard_t(3, (4, 300)).astype(np.float32))

    def error(scale: torch.Tensor, row: torch.Tensor) -> float:
        return float(((torch.clamp(torch.round(row / scale), -127, 127) * scale - row) ** 2).sum())

    largest, best = weight_scales(weight, (-127, 127), "minmax"), weight_scales(weight, (-127, 127), "mse")
    assert torch.allclose(largest, weight.abs().amax(1) / 127)
    for row, full, found in zip(weight, largest, best):
        tried = [error(full * clip, row) for clip in np.linspace(0.3, 1.0, 71)]
        assert error(found, row) == pytest.approx(min(tried), rel=1e-4)


def test_a_dead_channel_has_a_positive_scale() -> None:
    assert bool((weight_scales(torch.zeros(3, 5), (-127, 127), "mse") > 0).all())


@pytest.mark.parametrize(("value", "expected"), [(5.0, (0.0, 5.0)), (-2.0, (-2.0, 0.0)), (0.0, (0.0, 0.0))])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_a_constant_is_not_clipped(method: str, value: float, expected: tuple[float, float]) -> None:
    constant = Histogram(low=value, high=value, counts=torch.zeros(BINS))
    assert joint_range([constant], method, 99.9, symmetric=False) == expected
