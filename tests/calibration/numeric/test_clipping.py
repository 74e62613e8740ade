import numpy as np
import pytest

from piston.calibration.numeric.clipping import entropy_clip, mse_clip, percentile_clip
from piston.calibration.numeric.histogram import Histogram

RNG = np.random.default_rng(7)
DATA = {
    "normal": RNG.standard_normal(20_000),
    "laplace": RNG.laplace(size=20_000),
    "uniform": RNG.uniform(-3, 3, 20_000),
    "relu": np.maximum(RNG.standard_normal(20_000), 0),
    "outliers": np.concatenate([RNG.standard_normal(20_000), [300.0, -250.0, 40.0]]),
    "heavy": RNG.standard_t(2.5, 20_000),
}


@pytest.fixture(params=DATA)
def data(request):
    return DATA[request.param].astype(np.float32)


def magnitudes(data, bins=2**14):
    found = Histogram(bins=bins)
    found.update(data)
    return found.magnitudes()[0], float(found.width[0]), float(np.abs(data).max())


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 100.0])
def test_percentile_is_within_a_bin_of_numpy(data, percentile):
    counts, width, largest = magnitudes(data)
    exact = np.quantile(np.abs(data).astype(np.float64), percentile / 100, method="inverted_cdf")
    assert exact <= percentile_clip(counts, width, largest, percentile) + 1e-12
    assert percentile_clip(counts, width, largest, percentile) <= exact + width


def squared_error(data, clip, levels):
    step = clip / levels
    return float(np.square(np.clip(np.rint(data / step), -levels, levels) * step - data).mean())


@pytest.mark.parametrize("levels", [127, 7])
def test_mse_is_as_good_as_brute_force_on_the_data(data, levels):
    wide = data.astype(np.float64)
    found = mse_clip(*magnitudes(data), levels)
    best = min(squared_error(wide, clip, levels) for clip in np.abs(wide).max() * np.linspace(0.004, 1, 1000))
    assert squared_error(wide, found, levels) <= 1.01 * best


def slow_entropy(counts, width, levels):
    """The procedure of the GTC 2017 slides, bin by bin."""
    used = max(index for index, count in enumerate(counts) if count) + 1
    best, best_clip = np.inf, None
    for size in range(min(levels, used), used + 1):
        p = [float(count) for count in counts[:size]]
        p[-1] += sum(counts[size:])
        q = [0.0] * size
        for level in range(min(levels, size)):
            start, stop = level * size // min(levels, size), (level + 1) * size // min(levels, size)
            kept = [index for index in range(start, stop) if p[index]]
            for index in kept:
                q[index] = sum(counts[start:stop]) / len(kept)
        divergence = sum(
            np.inf if q[i] == 0 else p[i] / sum(p) * np.log(p[i] / sum(p) / (q[i] / sum(q)))
            for i in range(size)
            if p[i]
        )
        if divergence < best - 1e-12:
            best, best_clip = divergence, size * width
    return best_clip


@pytest.mark.parametrize("name", ["normal", "outliers", "relu"])
def test_entropy_is_that_of_a_literal_reference(name):
    counts, width, largest = magnitudes(DATA[name].astype(np.float32), bins=128)
    expected = min(slow_entropy([int(count) for count in counts], width, 16), largest)
    assert entropy_clip(counts, width, largest, 16) == pytest.approx(expected)


def test_entropy_looks_at_2048_bins_whatever_the_histogram_has():
    fine = magnitudes(DATA["laplace"].astype(np.float32), bins=2**14)
    coarse = magnitudes(DATA["laplace"].astype(np.float32), bins=2**11)
    assert entropy_clip(*fine) == entropy_clip(*coarse)


@pytest.mark.parametrize("clip", [mse_clip, entropy_clip, lambda *found: percentile_clip(*found, 99.0)])
def test_a_clip_is_positive_and_no_larger_than_the_data(data, clip):
    counts, width, largest = magnitudes(data, bins=512)
    assert 0 < clip(counts, width, largest) <= largest


@pytest.mark.parametrize("clip", [mse_clip, entropy_clip, lambda *found: percentile_clip(*found, 99.0)])
def test_a_constant_is_not_clipped(clip):
    assert clip(*magnitudes(np.full(9, 0.7, np.float32))) == pytest.approx(0.7, rel=0.01)
