import re

import numpy as np
import pytest
from embedded import MAX_LENGTH, SEP, WORDS, embedder

from piston.core.errors import MisuseError, PromptTooLongError

A, B = WORDS.index("a"), WORDS.index("b")


def test_vectors_come_in_the_order_of_the_texts_whatever_their_lengths():
    found = embedder().embed(["a b c d", "a", "b a", "b"])
    np.testing.assert_array_equal(found[:, 0], [6, 3, 4, 3])
    np.testing.assert_array_equal(found[:, 1], [sum(map(WORDS.index, "abcd")) + SEP, A + SEP, A + B + SEP, B + SEP])
    assert found.dtype == np.float32


def test_a_batch_has_no_more_tokens_than_max_batch_texts_of_the_longest_kind():
    model = embedder(max_batch=2)
    model.embed(["a"] * 5 + ["a b c d"] * 3)  # of 3 tokens, and of 6
    assert [feeds["lengths"].tolist() for feeds in model._session.fed] == [[3, 3, 3, 3], [3, 6], [6, 6]]
    assert all(feeds["input_ids"].size == 2 * MAX_LENGTH for feeds in model._session.fed)


def test_no_texts_have_no_vectors():
    assert embedder().embed([]).shape == (0, 3)


def test_a_text_that_is_too_long_is_refused_and_nothing_is_cut_without_a_word():
    model = embedder()
    with pytest.raises(PromptTooLongError, match=r"^Text 1 has 7 tokens; toy reads up to 6\. .*\(truncate\)\.$"):
        model.embed(["a", "a b c d e"])
    assert model._session.fed == []


def test_truncate_cuts_the_text_and_keeps_what_frames_it():
    model = embedder()
    model.embed(["a b c d e f"], truncate=True)
    (row,) = model._session.fed[0]["input_ids"].tolist()
    assert [WORDS[index] for index in row] == ["[CLS]", "a", "b", "c", "d", "[SEP]"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", ""], "Text 1 is empty"),
        ([" \n"], "Text 0 is empty"),
        (["a\ud83d"], "must be a string of Unicode characters"),
        ([None], "texts[0] is None; it must be a string"),
        ("a", "texts is 'a'; it must be a list of strings; for one text, give [text]"),
    ],
)
def test_what_is_no_text_is_refused(texts, message):
    with pytest.raises(MisuseError, match=re.escape(message)):
        embedder().embed(texts)


def test_prompts_go_in_front_by_name_or_by_default():
    prompts = {"query": "query: "}
    plain, named = embedder(prompts=prompts), embedder(prompts=prompts, default_prompt="query")
    expected = embedder().embed(["query: a"])
    np.testing.assert_array_equal(plain.embed(["a"], prompt_name="query"), expected)
    np.testing.assert_array_equal(named.embed(["a"]), expected)
    np.testing.assert_array_equal(plain.embed(["a"]), embedder().embed(["a"]))


def test_a_prompt_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(MisuseError, match=r"toy has no prompt 'passage'; it has: 'query'\."):
        embedder(prompts={"query": "query: "}).embed(["a"], prompt_name="passage")


def test_fewer_dimensions_are_the_first_and_of_length_1_where_the_model_has_that():
    texts = ["a", "b a"]
    whole = embedder().embed(texts)
    np.testing.assert_array_equal(embedder().embed(texts, dimensions=2), whole[:, :2])
    found = embedder(normalized=True).embed(texts, dimensions=2)
    np.testing.assert_allclose(np.hypot(*found.T), 1, rtol=1e-6)
    np.testing.assert_allclose(found[:, 0] / found[:, 1], whole[:, 0] / whole[:, 1], rtol=1e-6)


@pytest.mark.parametrize("dimensions", [0, 4])
def test_dimensions_that_there_are_not_are_refused(dimensions):
    with pytest.raises(MisuseError, match="must be from 1 to 3"):
        embedder().embed(["a"], dimensions=dimensions)


def test_leaving_the_block_closes_the_session():
    with embedder() as model:
        pass
    assert model._session.is_closed
