import re

import pytest

from piston.core.errors import MisuseError
from piston.core.unicode import check_unicode, check_unicode_in


@pytest.mark.parametrize("text", ["", "a", "é 🫠 \U0010ffff", "\ufffe\x7f"])
def test_a_text_of_whole_characters_is_returned(text):
    assert check_unicode(text, "The text") == text


@pytest.mark.parametrize(("text", "half", "place"), [("ab \ud800", "d800", 3), ("\udfff\ud800", "dfff", 0)])
def test_an_unpaired_surrogate_is_refused_with_its_place(text, half, place):
    expected = f"Text 3 has the unpaired surrogate \\u{half} at character {place}; it must be a string of Unicode"
    with pytest.raises(MisuseError, match=re.escape(expected)):
        check_unicode(text, "Text 3")


@pytest.mark.parametrize(
    ("value", "name", "place"),
    [
        ("\ud800", "", "The text has"),
        ({"input": ["a", "\ud800"]}, "", "input[1] has"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "", "messages[0].content has"),
        ({"text": "\ud800"}, "rows.jsonl, line 3:", "rows.jsonl, line 3: text has"),
        ({"a\ud800": 1}, "", r"The name a\ud800 has"),
        ({"a\ud800": {"b": "\ud800"}}, "", r"The name a\ud800 has"),
    ],
)
def test_the_place_in_a_value_is_named(value, name, place):
    with pytest.raises(MisuseError, match="^" + re.escape(place)) as refused:
        check_unicode_in(value, name)
    str(refused.value).encode()  # it can be sent and printed


def test_a_value_without_surrogates_passes():
    check_unicode_in({"a": ["é", 1, None, True, {"b": 1.5}]}, "")
