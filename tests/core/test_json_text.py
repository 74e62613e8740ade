import json
import math

import pytest

from piston.core.json_text import json_text


def strict(text):
    """Parse as RFC 8259 has it, which Python's parser extends by three names."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_numbers_that_are_not_finite_are_strings_that_float_reads():
    value = {"a": [1.5, math.inf, {"b": (-math.inf, math.nan)}], "c": 2}
    found = strict(json_text(value, indent=1))
    assert found == {"a": [1.5, "Infinity", {"b": ["-Infinity", "NaN"]}], "c": 2}
    assert float(found["a"][1]) == math.inf
    assert math.isnan(float(found["a"][2]["b"][1]))


def test_everything_else_is_written_as_python_writes_it():
    value = {"é": [1, 2.5, None, True, "NaN"]}
    assert json_text(value) == json.dumps(value)
    options = {"indent": 1, "ensure_ascii": False, "sort_keys": True}
    assert json_text(value, **options) == json.dumps(value, **options)


def test_what_json_does_not_have_is_refused():
    with pytest.raises(TypeError):
        json_text({1, 2})
