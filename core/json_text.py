"""JSON as text for files, for stdout and for other processes.

JSON has no NaN and no infinities (RFC 8259, section 6). Python's `json.dumps` writes them all the same, and strict
readers refuse the text. Here they are the strings "NaN", "Infinity" and "-Infinity", as in the JSON form of protocol
buffers (https://protobuf.dev/programming-guides/json/). `float` reads them, and so does `piston.core.schema.validated`.
"""

import json
import math
from typing import Any

NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def json_text(value: Any, **options: Any) -> str:
    """The value as JSON, with the options of `json.dumps`.

    Raises:
        TypeError: it holds something that JSON does not have.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)  # noqa: TID251
    except ValueError:
        return json.dumps(_spelled(value), allow_nan=False, **options)  # noqa: TID251


def _spelled(value: Any) -> Any:
    """The value with strings in the place of numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _spelled(item) for key, item in value.items()}
    return [_spelled(item) for item in value] if isinstance(value, list | tuple) else value
