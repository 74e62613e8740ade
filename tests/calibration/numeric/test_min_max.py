import numpy as np
import pytest

from piston.calibration.numeric.min_max import extremes
from piston.core.errors import CalibrationError

ARRAY = np.array([[[1.0, -2.0], [3.0, 0.5]]], np.float32)


@pytest.mark.parametrize(("per_channel", "low", "high"), [(False, [-2.0], [3.0]), (True, [1.0, -2.0], [3.0, 0.5])])
def test_extremes_of_a_tensor_and_of_its_channels(per_channel, low, high):
    found = extremes(ARRAY, "x", per_channel=per_channel)
    assert [array.tolist() for array in found] == [low, high]
    assert all(array.dtype == np.float32 for array in found)


def test_every_value_that_is_not_finite_is_counted():
    array = ARRAY.copy()
    array[0, 0, 1], array[0, 1, 0] = np.inf, np.nan
    with pytest.raises(CalibrationError, match=r"x has 2 of 4 values .* the first at \[0, 0, 1\]; .* bfloat16"):
        extremes(array, "x", per_channel=True)
