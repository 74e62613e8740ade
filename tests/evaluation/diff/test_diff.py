from hypothesis import given
from hypothesis import strategies as st

from piston.evaluation.diff import word_diff


def joined(parts, *kinds):
    return "".join(text for kind, text in parts if kind in kinds)


@given(st.text(alphabet="ab .\né", max_size=30), st.text(alphabet="ab .\né", max_size=30))
def test_the_parts_of_a_word_diff_make_both_texts(before, after):
    parts = word_diff(before, after)
    assert joined(parts, "same", "removed") == before
    assert joined(parts, "same", "added") == after


def test_a_word_is_replaced_whole():
    assert word_diff("the cat sat.", "the dog sat.") == [
        ("same", "the "),
        ("removed", "cat"),
        ("added", "dog"),
        ("same", " sat."),
    ]


def test_equal_texts_are_one_part():
    assert word_diff("one two", "one two") == [("same", "one two")]
