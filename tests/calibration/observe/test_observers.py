import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piston.calibration.observe.observers import MovingAverage, make_observer
from piston.core.errors import CalibrationError

METHODS = ("minmax", "moving", "percentile", "entropy", "mse")
RNG = np.random.default_rng(3)
BLOCKS = [(RNG.standard_normal((1, 50, 4)) * scale).astype(np.float32) for scale in (1, 0.2, 7, 3)]

everywhere = pytest.mark.parametrize("method", METHODS)
granular = pytest.mark.parametrize("per_channel", [False, True])


def seen(method, blocks, *, per_channel=False):
    observer = make_observer(method, "x", per_channel=per_channel)
    for block in blocks:
        observer.update(block)
    return observer


def assert_same_state(one, other):
    assert one.kind == other.kind
    for name, array in one.state().items():
        np.testing.assert_allclose(array, other.state()[name], rtol=1e-12, err_msg=name)


@everywhere
@granular
def test_a_range_has_the_shape_of_its_granularity(method, per_channel):
    found = seen(method, BLOCKS, per_channel=per_channel).range()
    expected = (4,) if per_channel else ()
    assert found.low.shape == found.high.shape == found.amax.shape == expected
    assert found.low.dtype == found.high.dtype == found.amax.dtype == np.float32
    assert (found.low < 0).all()
    assert (found.amax <= np.abs(np.concatenate(BLOCKS, axis=1)).max()).all()


@everywhere
def test_channels_are_observed_as_if_each_were_alone(method):
    whole = seen(method, BLOCKS, per_channel=True).range()
    for channel in range(4):
        alone = seen(method, [block[..., channel : channel + 1] for block in BLOCKS], per_channel=True).range()
        assert (alone.low[0], alone.high[0]) == (whole.low[channel], whole.high[channel])


@everywhere
@granular
@pytest.mark.parametrize("cut", range(len(BLOCKS) + 1))
def test_merging_is_the_same_as_one_pass(method, per_channel, cut):
    observer = seen(method, BLOCKS[:cut], per_channel=per_channel)
    observer.merge(seen(method, BLOCKS[cut:], per_channel=per_channel))
    assert_same_state(observer, seen(method, BLOCKS, per_channel=per_channel))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "moving"])
@given(order=st.permutations(BLOCKS))
def test_order_does_not_matter(method, order):
    assert_same_state(seen(method, order), seen(method, BLOCKS))


@everywhere
@granular
@pytest.mark.parametrize("cut", [0, 2])
def test_a_restored_observer_goes_on_as_if_never_stopped(method, per_channel, cut):
    observer = make_observer(method, "x", per_channel=per_channel)
    observer.restore(seen(method, BLOCKS[:cut], per_channel=per_channel).state())
    for block in BLOCKS[cut:]:
        observer.update(block)
    np.testing.assert_array_equal(observer.range().amax, seen(method, BLOCKS, per_channel=per_channel).range().amax)


@everywhere
@granular
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_the_tensors_name(method, per_channel, poison):
    block = BLOCKS[0].copy()
    block[0, 7, 2] = poison
    observer = make_observer(method, "the input of down_proj", per_channel=per_channel)
    with pytest.raises(CalibrationError, match=r"the input of down_proj has 1 of 200 values .* first at \[0, 7, 2\]"):
        observer.update(block)


@everywhere
def test_a_range_of_nothing_is_refused(method):
    observer = make_observer(method, "x")
    observer.update(np.empty((1, 0, 4), np.float32))
    with pytest.raises(CalibrationError, match="x was never computed"):
        observer.range()


@everywhere
@granular
def test_dead_channels_have_a_range_of_zero(method, per_channel):
    found = seen(method, [np.zeros((1, 9, 4), np.float32)], per_channel=per_channel).range()
    assert not found.low.any()
    assert not found.high.any()


def test_minmax_is_exact():
    found, values = seen("minmax", BLOCKS).range(), np.concatenate(BLOCKS, axis=1)
    assert (found.low, found.high) == (values.min(), values.max())


def test_a_moving_average_follows_its_definition():
    observer, lows = MovingAverage("x", momentum=0.3), [float(block.min()) for block in BLOCKS]
    for block in BLOCKS:
        observer.update(block)
    weights = [0.3 * 0.7 ** (len(lows) - 1 - age) for age in range(len(lows))]
    assert observer.range().low == pytest.approx(np.average(lows, weights=weights), rel=1e-6)


def test_the_average_of_one_array_is_its_own_range():
    assert seen("moving", BLOCKS[:1]).range() == seen("minmax", BLOCKS[:1]).range()


def test_a_percentile_cuts_outliers_that_minmax_keeps():
    block = np.concatenate([RNG.standard_normal(100_000), [900.0]]).astype(np.float32)
    assert seen("percentile", [block]).range().amax < 5
    assert seen("minmax", [block]).range().amax == 900


def test_a_range_is_cut_to_what_was_seen():
    block = np.array([-0.25, *np.linspace(0, 1, 999)], np.float32)
    found = seen("percentile", [block]).range()
    assert found.low == np.float32(-0.25)


def test_histogram_methods_share_their_state():
    first = seen("percentile", BLOCKS)
    second = make_observer("mse", "x")
    assert first.kind == second.kind
    second.restore(first.state())
    assert second.range().amax == seen("mse", BLOCKS).range().amax
