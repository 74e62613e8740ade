import sys

import pytest

from piston.core.errors import MissingExtraError
from piston.evaluation.references import bleu, chrf, normalized, word_error_rate

TEXTS = [
    "He said: “It's <laughs> 3.5 km (about two miles) away!”",
    "  Ça   va? [noise] ÀÉÎ; naïve—café…",
    "数字は１２です。",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_normalized_as_whisper_does(text):
    transformers = pytest.importorskip("transformers.models.whisper.english_normalizer")
    assert normalized(text) == transformers.BasicTextNormalizer()(text).strip()


def test_words_that_are_wrong_missing_or_added_count_over_the_words_that_were_said():
    pytest.importorskip("jiwer")
    # said: 4 + 2 words; one is wrong, one is missing, one is added
    assert word_error_rate(["The sea was", "Wind blows, now."], ["the sea is calm", "wind blows"]) == pytest.approx(
        3 / 6
    )


def test_equal_texts_score_one():
    pytest.importorskip("sacrebleu")
    texts = ["das Meer ist heute ruhig", "der Wind weht aus dem Norden"]
    assert chrf(texts, texts) == pytest.approx(1)
    assert bleu(texts, texts) == pytest.approx(1)
    assert chrf(texts[::-1], texts) < 0.4


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(MissingExtraError, match=r"jiwer is not installed; pip install 'piston\[metrics\]'"):
        word_error_rate(["a"], ["a"])
