import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from columns import Column

from piston.core.arguments import check_fields, checked_arguments
from piston.core.errors import MisuseError


class Settings:
    """A class that only its own objects are of."""


@checked_arguments
def called(
    texts: Sequence[str] = (),
    *,
    number: int | None = None,
    is_on: bool = False,
    share: float = 0.5,
    order: Literal["up", "down"] = "up",
    pairs: Sequence[str | tuple[str, str]] = (),
    prompt: str | Sequence[int] | Sequence[str | Sequence[int]] = "",
    messages: Sequence[Mapping[str, Any]] = (),
    on_step: Callable[[], None] | None = None,
    settings: Settings | None = None,
    path: str | Path = "",
    audio: Annotated[bytes | tuple[Any, int], "bytes, or samples with their rate"] = b"",
    **others: Any,
) -> dict[str, Any]:
    """Every argument as it arrives."""
    return dict(locals())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": 3}, "texts is 3; it must be a list of strings."),
        ({"texts": None}, "texts is None; it must be a list of strings."),
        ({"texts": "wind"}, "texts is 'wind'; it must be a list of strings; for one text, give [text]."),
        ({"texts": b"wind"}, "texts is b'wind'; it must be a list of strings."),
        ({"texts": {"a": 1}}, "texts is {'a': 1}; it must be a list of strings."),
        ({"texts": {"a"}}, "texts is {'a'}; it must be a list of strings."),
        ({"texts": np.array("wind")}, "texts is an array [] of <U4; it must be a list of strings."),
        ({"texts": np.zeros((2, 3), np.float32)}, "texts[0] is an array [3] of float32; it must be a string."),
        ({"texts": ["a", 3]}, "texts[1] is 3; it must be a string."),
        ({"number": "3"}, "number is '3'; it must be an integer or None."),
        ({"number": 1.5}, "number is 1.5; it must be an integer or None."),
        ({"number": True}, "number is True; it must be an integer or None."),
        ({"is_on": "no"}, "is_on is 'no'; it must be True or False."),
        ({"is_on": 1}, "is_on is 1; it must be True or False."),
        ({"share": "1"}, "share is '1'; it must be a number."),
        ({"order": "left"}, "order is 'left'; it must be one of 'up', 'down'."),
        (
            {"pairs": "ab"},
            "pairs is 'ab'; it must be a list of strings or tuples of two strings; for one text, give [text].",
        ),
        ({"pairs": [["a", "b"]]}, "pairs[0] is ['a', 'b']; it must be a string or a tuple of two strings."),
        ({"pairs": [("a", 2)]}, "pairs[0][1] is 2; it must be a string."),
        (
            {"prompt": b"ab"},
            "prompt is b'ab'; it must be a string, a list of integers or a list of strings or lists of integers.",
        ),
        ({"messages": "hi"}, "messages is 'hi'; it must be a list of dictionaries."),
        ({"messages": ["hi"]}, "messages[0] is 'hi'; it must be a dictionary."),
        ({"on_step": 3}, "on_step is 3; it must be a function or None."),
        ({"settings": {}}, "settings is {}; it must be a Settings or None."),
        ({"audio": 3}, "audio is 3; it must be bytes, or samples with their rate."),
        ({"audio": ([0.5], "8")}, "audio[1] is '8'; it must be an integer."),
        ({"path": 3}, "path is 3; it must be a string or a Path."),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_it_takes(arguments, message):
    with pytest.raises(MisuseError, match=f"^{re.escape(message)}$"):
        called(**arguments)


def test_a_value_of_a_million_lines_is_shown_in_a_short_one():
    with pytest.raises(MisuseError) as refused:
        called(["a"] * 3, number="a\n" * 1_000_000)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_arguments_that_fit_arrive():
    given = {"number": None, "is_on": True, "share": 1, "order": "down", "settings": Settings(), "path": Path("a")}
    given |= {"audio": ([0.5], 8000)}
    given |= {"on_step": print, "prompt": ["a", [1, 2]], "messages": [{"role": "user"}], "pairs": ["a", ("b", "c")]}
    arrived = called(["a", "b"], **given, further=3)
    assert arrived == given | {"texts": ["a", "b"], "others": {"further": 3}}


def test_arrays_and_columns_are_lists_in_their_order():
    assert called(np.array(["b", "a"]))["texts"] == ["b", "a"]
    assert called(Column({7: "b", 3: "a"}))["texts"] == ["b", "a"]
    assert called(("b", "a"))["texts"] == ["b", "a"]
    assert called(number=np.int64(3), is_on=np.True_, prompt=np.arange(3))["prompt"] == [0, 1, 2]


def test_a_function_keeps_its_name_and_pythons_own_errors():
    assert called.__name__ == "called"
    with pytest.raises(TypeError, match=re.escape("called() takes from 0 to 1 positional arguments but 2 were given")):
        called([], [])


@dataclass
class Options:
    temperatures: tuple[float, ...] = (0.0,)
    language: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def test_fields_of_a_dataclass_are_checked_likewise():
    assert Options((0, 0.5), "en").temperatures == (0, 0.5)
    with pytest.raises(MisuseError, match=re.escape("temperatures is 0.5; it must be a list of numbers.")):
        Options(temperatures=0.5)
    with pytest.raises(MisuseError, match=re.escape("language is 3; it must be a string or None.")):
        Options(language=3)


def test_a_quoted_annotation_is_a_mistake_of_the_author():
    def function(settings: "Settings") -> None:
        del settings

    with pytest.raises(AssertionError, match="must not be quoted"):
        checked_arguments(function)
