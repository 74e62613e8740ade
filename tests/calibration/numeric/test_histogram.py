import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from piston.calibration.numeric.histogram import Histogram

FLOATS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
BLOCKS = st.lists(arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(3)), elements=FLOATS), min_size=1)


def histogram_of(blocks, *, per_channel=False, bins=32):
    found = Histogram(per_channel=per_channel, bins=bins)
    for block in blocks:
        found.update(block)
    return found


def assert_same(one, other):
    for name, array in one.state().items():
        np.testing.assert_array_equal(array, other.state()[name], err_msg=name)


def counted(values, found, channel=0):
    """Numpy's histogram over the same bins."""
    limit = 2.0 ** found.exponents[channel]
    return np.histogram(values.astype(np.float64), np.linspace(-limit, limit, 2 * found.bins + 1))[0]


@given(BLOCKS, st.booleans())
def test_no_count_is_lost_while_the_range_grows(blocks, per_channel):
    found = histogram_of(blocks, per_channel=per_channel)
    values = np.concatenate(blocks)
    columns = values.T if per_channel else [values.reshape(-1)]
    for channel, column in enumerate(columns):
        np.testing.assert_array_equal(found.counts[channel], counted(column, found, channel))
        assert (found.low[channel], found.high[channel]) == (column.min(), column.max())


@given(BLOCKS, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_the_data_does_not_matter(blocks, per_channel, random):
    shuffled = random.sample(blocks, len(blocks))
    assert_same(histogram_of(blocks, per_channel=per_channel), histogram_of(shuffled, per_channel=per_channel))


@given(BLOCKS, st.booleans(), st.data())
def test_merged_parts_are_the_whole(blocks, per_channel, data):
    cut = data.draw(st.integers(0, len(blocks)))
    first, second = (
        histogram_of(blocks[:cut], per_channel=per_channel),
        histogram_of(blocks[cut:], per_channel=per_channel),
    )
    before = {name: array.copy() for name, array in second.state().items()}
    first.merge(second)
    assert_same(first, histogram_of(blocks, per_channel=per_channel))
    for name, array in before.items():
        np.testing.assert_array_equal(second.state()[name], array)


@pytest.mark.parametrize("largest", [1.0, 0.9, 1e-30, 3e38, 4096.0])
def test_the_largest_value_lies_inside_whatever_its_size(largest):
    found = histogram_of([np.array([largest, -largest], np.float32)])
    assert found.counts.sum() == 2
    assert found.low[0] == -found.high[0] == np.float32(-largest)


def test_zeros_alone_are_counted():
    found = histogram_of([np.zeros((4, 3), np.float32)], per_channel=True)
    assert found.magnitudes()[:, 0].tolist() == [4, 4, 4]


def test_magnitudes_fold_the_signs():
    found = histogram_of([np.array([-0.9, 0.9, 0.1, -0.1, 0.6], np.float32)], bins=4)
    assert found.magnitudes().tolist() == [[2, 0, 1, 2]]


def test_memory_is_bounded_by_the_bins():
    found = Histogram(bins=64)
    for exponent in range(-60, 60):
        found.update(np.full(1000, 2.0**exponent, np.float32))
    assert found.counts.shape == (1, 128)
    assert found.counts.sum() == 120_000


def test_a_restored_histogram_goes_on():
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((5, 3)).astype(np.float32) * 10**n for n in range(4)]
    restored = Histogram(bins=32)
    restored.restore(histogram_of(blocks[:2]).state())
    for block in blocks[2:]:
        restored.update(block)
    assert_same(restored, histogram_of(blocks))


def test_bins_that_are_no_power_of_two_are_refused():
    with pytest.raises(ValueError, match="power of two, not 100"):
        Histogram(bins=100)
