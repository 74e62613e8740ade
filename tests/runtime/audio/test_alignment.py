import numpy as np
import pytest
import torch
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

from piston.runtime.audio.alignment import token_times, warping_path, words_of


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 40), (30, 30), (12, 7)])
def test_the_path_is_that_of_transformers(shape):
    cost = np.random.default_rng(shape[0]).standard_normal(shape)
    for found, expected in zip(warping_path(cost), _dynamic_time_warping(cost), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_equal_costs_are_decided_as_in_transformers():
    for found, expected in zip(warping_path(np.zeros((4, 6))), _dynamic_time_warping(np.zeros((4, 6))), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_times_are_those_of_transformers():
    attention = np.random.default_rng(0).random((3, 11, 200), np.float32)
    attention /= attention.sum(axis=-1, keepdims=True)
    weights = torch.tensor(attention)[None, :, :, : 150 // 2]
    weights = (weights - weights.mean(-2, keepdim=True)) / weights.std(-2, keepdim=True, unbiased=False)
    matrix = _median_filter(weights, 7).mean(dim=1)[0]
    tokens, positions = _dynamic_time_warping(-matrix.double().numpy())
    expected = positions[np.pad(np.diff(tokens), (1, 0), constant_values=1).astype(bool)] * 0.02
    np.testing.assert_allclose(token_times(attention, 150), expected)


class Pieces:
    """A tokenizer of given pieces of bytes; the end token follows them."""

    def __init__(self, pieces):
        self.pieces, self.eos_token_id, self.language = pieces, len(pieces), "english"

    def decode(self, ids, **_):
        return b"".join(self.pieces[index] for index in ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "language", "code"),
    [
        ([" Hel", "lo", ",", " wor", "ld", "!", ' "', "Yes", '"', " -", " no", "."], "english", "en"),
        (["Don", "'t", " (", "ever", ")", " go", " ", "...", " 3", ".", "5"], "english", "en"),
        (["今日", "は", "。", "「", "はい"], "japanese", "ja"),
    ],
)
def test_words_and_their_punctuation_are_those_of_transformers(text, language, code):
    tokenizer = Pieces([piece.encode() for piece in text])
    ids = list(range(len(text)))
    words, _, places = _combine_tokens_into_words(tokenizer, ids, language)
    assert words_of(ids, tokenizer.decode, len(text), code) == list(zip(words, places, strict=True))


def test_a_character_cut_between_tokens_is_one_piece():
    data = " Zürich 😀 ok".encode()
    tokenizer = Pieces([data[:3], data[3:10], data[10:12], data[12:14], data[14:]])
    ids = list(range(5))
    words, _, places = _combine_tokens_into_words(tokenizer, ids, "english")
    assert words_of(ids, tokenizer.decode, 5, "en") == list(zip(words, places, strict=True))
    assert "".join(word for word, _ in words_of(ids, tokenizer.decode, 5, "en")) == data.decode()
