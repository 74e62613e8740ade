import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piston.data.documents import Document
from piston.data.packing import pack

WORDS = Document(" ".join(f"word{n}" for n in range(3000)))


def encode(text):
    return [ord(character) for character in text]


def packed(documents, num_rows=5, seq_len=64, seed=0, prefix=()):
    return pack(documents, encode, num_rows=num_rows, seq_len=seq_len, seed=seed, prefix=prefix)


def text_of(ids):
    return "".join(map(chr, ids))


def test_rows_have_the_shape_that_was_asked_for():
    assert packed([WORDS]).ids.shape == (5, 64)
    assert packed([WORDS]).ids.dtype == np.int64


def test_a_seed_gives_the_same_rows_and_another_seed_others():
    assert (packed([WORDS], seed=3).ids == packed([WORDS], seed=3).ids).all()
    assert (packed([WORDS], seed=3).ids != packed([WORDS], seed=4).ids).any()


@given(st.lists(st.text("ab\n ", min_size=1, max_size=300), min_size=1, max_size=8), st.integers(0, 5))
def test_all_tokens_of_all_documents_are_used_once_but_for_repeated_pieces(texts, seed):
    documents = [Document(f"{place}{text}") for place, text in enumerate(texts)]
    found = packed(documents, num_rows=10**6, seq_len=2, seed=seed)
    total = sum(len(document.content) for document in documents)
    assert found.num_tokens <= total
    assert len({tuple(row) for row in found.ids.tolist()}) == len(found.ids)


def test_what_rows_hold_stands_in_the_documents():
    parts = (text_of(row) for row in packed([WORDS], num_rows=1, seq_len=200).ids)
    assert all(part in WORDS.content for part in parts)


def test_few_rows_see_many_places_of_one_long_document():
    found = packed([WORDS], num_rows=20, seq_len=32, seed=1)
    places = [int(part) for row in found.ids for part in text_of(row).split("word") if part.strip().isdigit()]
    assert np.ptp(places) > 1000


def test_documents_are_not_cut_inside_a_line_that_fits():
    lines = "".join(f"line number {n:04d}\n" for n in range(400))
    found = packed([Document(lines)], num_rows=1, seq_len=64)
    assert text_of(found.ids[0]).startswith("line number")


def test_nothing_is_encoded_beyond_what_is_needed():
    found = packed([WORDS], num_rows=1, seq_len=64)
    assert found.num_tokens <= 64 * 5


def test_documents_that_run_out_give_fewer_rows():
    found = packed([Document("x" * 10 + "yz" * 65)], num_rows=5, seq_len=64)
    assert (len(found.ids), found.num_tokens) == (2, 140)


def test_repeated_documents_give_no_repeated_rows():
    found = packed([Document("the same sentence, again and again.\n")] * 500, seq_len=16, num_rows=100)
    assert len(found.ids) == 2


@pytest.mark.parametrize("document", [WORDS, Document(np.arange(1, 3001))])
def test_every_row_begins_with_the_prefix_once(document):
    found = packed([document], prefix=(0,))
    assert (found.ids[:, 0] == 0).all()
    assert (found.ids[:, 1:] != 0).all()


def test_token_ids_are_taken_as_they_are():
    found = packed([Document(np.arange(640))], num_rows=10)
    assert sorted(found.ids[:, 0]) == list(range(0, 640, 64))
    assert (np.diff(found.ids, axis=1) == 1).all()
