import pytest

from piston.runtime.text.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("One is here. Two is there. Three.", 26, ["One is here. Two is there.", "Three."]),
        ("One is here. Two is there. Three.", 12, ["One is here.", "Two is there.", "Three."]),
        ("One is here. Two is there. Three.", 99, ["One is here. Two is there. Three."]),
        ('He said "Go!" Then he left.\nAnd so', 15, ['He said "Go!"', "Then he left.", "And so"]),
        ("我来了。你呢？好！", 5, ["我来了。", "你呢？好！"]),  # noqa: RUF001
        ("no end at all", 3, ["no end at all"]),
        ("  ", 3, []),
    ],
)
def test_a_text_is_cut_behind_sentences_into_pieces_as_long_as_fit(text, limit, pieces):
    assert split_sentences(text, lambda piece: len(piece) <= limit) == pieces
