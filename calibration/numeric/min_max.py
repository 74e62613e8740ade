"""Smallest and largest value of an array, and the one place where NaN and infinity are refused."""

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import CalibrationError

Floats = NDArray[np.float32]


def extremes(array: Floats, name: str, *, per_channel: bool) -> tuple[Floats, Floats]:
    """(low, high) float32 of an array [..., channels] with at least one value: [channels] each, or [1].

    Raises:
        CalibrationError: there is a NaN or an infinity; the message has the tensor's name and the first place.
    """
    if per_channel:
        rows = array.reshape(-1, array.shape[-1])
        low, high = rows.min(axis=0), rows.max(axis=0)
    else:
        low, high = array.min(keepdims=True).reshape(1), array.max(keepdims=True).reshape(1)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):  # min and max pass NaN on
        raise CalibrationError(_complaint(array, name))
    return low.astype(np.float32, copy=False), high.astype(np.float32, copy=False)


def _complaint(array: Floats, name: str) -> str:
    bad = ~np.isfinite(array)
    place = np.unravel_index(int(bad.argmax()), array.shape)
    return (
        f"{name} has {int(bad.sum()):,} of {array.size:,} values that are NaN or infinite, the first at "
        f"{[int(index) for index in place]}; the float model itself overflows there: export it in float32 or bfloat16, "
        "or calibrate on other text."
    )
