import numpy as np

from piston.runtime.ragged import batches, padded


def test_rows_are_padded_on_the_right_and_their_lengths_kept():
    feeds = padded([[5, 6, 7], [8]])
    np.testing.assert_array_equal(feeds["input_ids"], [[5, 6, 7], [8, 0, 0]])
    np.testing.assert_array_equal(feeds["lengths"], [3, 1])
    np.testing.assert_array_equal(feeds["token_type_ids"], np.zeros((2, 3)))
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int64)}


def test_batches_hold_rows_of_like_length_within_the_tokens_and_every_row_once():
    lengths = [9, 1, 4, 2, 30, 4, 3]
    found = list(batches(lengths, tokens=12))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 12
    assert found[-1] == [4]  # longer than all the tokens, and alone


def test_little_of_a_batch_is_padding():
    lengths = [*range(1, 200)]
    for batch in batches(lengths, tokens=1 << 20):
        sizes = [lengths[index] for index in batch]
        assert max(sizes) <= 1.25 * min(sizes) + 8
    assert sum(1 for _ in batches(lengths, tokens=1 << 20)) < 16  # and batches are not small for it


def test_segments_are_padded_like_the_rows():
    feeds = padded([[5, 6, 7], [8]], [[0, 1, 1], [1]])
    np.testing.assert_array_equal(feeds["token_type_ids"], [[0, 1, 1], [1, 0, 0]])


def test_no_rows_are_no_batches():
    assert list(batches([], tokens=8)) == []
