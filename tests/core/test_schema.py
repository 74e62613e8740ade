from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from piston.core.schema import SchemaError, dotted, to_plain, validated


@dataclass(frozen=True)
class Inner:
    size: int
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    share: float
    inner: tuple[Inner, ...] = ()
    named: Mapping[str, Inner] | None = None
    free: Any = None
    is_on: bool = False


def test_nested_values_become_dataclasses():
    value = {"share": 1, "inner": [{"size": 2}], "named": {"x": {"size": 3, "kind": "b"}}, "free": [1], "is_on": True}
    expected = Outer(1.0, (Inner(2),), {"x": Inner(3, "b")}, [1], is_on=True)
    assert validated(Outer, value) == expected
    assert isinstance(validated(Outer, value).share, float)


@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        ({"share": "x"}, ("share",), "share is 'x', it must be a float"),
        ({"share": True}, ("share",), "share is True"),
        ({"share": 1, "inner": [{"size": 1}, {"size": -1}]}, ("inner", 1, "size"), "inner[1].size is -1"),
        ({"share": 1, "inner": [{"size": True}]}, ("inner", 0, "size"), "must be a int"),
        ({"share": 1, "inner": [{"size": 1, "kind": "c"}]}, ("inner", 0, "kind"), "one of a, b"),
        ({"share": 1, "inner": {}}, ("inner",), "inner must be a list"),
        ({"share": 1, "inner": [{}]}, ("inner", 0), "field inner[0].size is missing"),
        ({"share": 1, "named": {"x": 1}}, ("named", "x"), "named.x must be an object"),
        ({"share": 1, "other": 1}, ("other",), "unknown field other"),
        ({"share": 1, "is_on": 1}, ("is_on",), "is_on is 1"),
        ([], (), "the manifest must be an object"),
    ],
)
def test_what_is_wrong_and_where_is_said(value, path, said):
    with pytest.raises(SchemaError) as caught:
        validated(Outer, value)
    assert (caught.value.path, said in str(caught.value)) == (path, True)


def test_a_float_that_is_not_finite_may_be_the_string_that_json_has_for_it():
    assert validated(tuple[float, ...], ["-Infinity", "Infinity", 1]) == (-float("inf"), float("inf"), 1.0)
    assert validated(float | None, "NaN") != validated(float | None, "NaN")
    with pytest.raises(SchemaError):
        validated(tuple[float, ...], ["nan"])


def test_a_choice_is_not_met_by_an_equal_value_of_another_type():
    with pytest.raises(SchemaError):
        validated(Literal[1], True)


def test_paths_are_written_as_in_code():
    assert dotted(("engines", 0, "cache", "dtype")) == "engines[0].cache.dtype"


def test_plain_values_become_the_same_dataclasses_again():
    value = Outer(1.0, (Inner(2),), {"x": Inner(3, "b")}, (1, 2), is_on=True)
    plain = to_plain(value)
    assert plain["inner"] == [{"size": 2, "kind": "a"}]
    assert plain["free"] == [1, 2]
    assert to_plain(validated(Outer, plain)) == plain
