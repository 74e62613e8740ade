import numpy as np
import pytest
from embedded import MAX_LENGTH, embedder, letter_model, tagger

from piston.core.errors import EngineError, MisuseError, PromptTooLongError
from piston.runtime import load
from piston.runtime.encoder import CHUNK, longest_first
from piston.runtime.tasks.text_classification import TextClassifier


@pytest.mark.parametrize(
    ("sizes", "room", "kept"),
    [
        ([3, 9], 8, [3, 5]),  # only the longer text is cut
        ([9, 3], 8, [5, 3]),
        ([9, 8], 7, [4, 3]),  # both alike; the longer one gets what is left of an odd room
        ([8, 9], 7, [3, 4]),
        ([2, 2], 8, [2, 2]),
        ([9], 4, [4]),
    ],
)
def test_of_two_texts_the_longer_one_is_cut_first(sizes, room, kept):
    assert longest_first(sizes, room) == kept


def test_texts_are_cut_as_transformers_cuts_them(tmp_path):
    from encoders import write_subword_tokenizer
    from transformers import AutoTokenizer

    from piston.runtime.text.tokenizer import Tokenizer

    write_subword_tokenizer(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    model = embedder()
    model.tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    for pair in [("abcdefghij", "abc"), ("abc", "abcdefghij"), ("abcdefghij", "abcdefghijk"), ("héllo\r\n你好", "x")]:
        for length in range(5, 20):
            model.max_length = length
            row = model.row(*pair, max_tokens=length)
            wanted = reference(*pair, truncation="longest_first", max_length=length, return_token_type_ids=True)
            assert (row.ids, row.type_ids) == (wanted["input_ids"], wanted["token_type_ids"])


def test_windows_are_those_of_transformers(tmp_path):
    from encoders import write_subword_tokenizer
    from transformers import AutoTokenizer

    from piston.runtime.text.tokenizer import Tokenizer

    write_subword_tokenizer(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    model = embedder()
    model.tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    texts = ("who?", "hello world in paris 你好 " * 5)
    rows = model.windows(*texts, what="The question", length=20, stride=4)
    wanted = reference(
        *texts, truncation="only_second", max_length=20, stride=4, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    assert [row.ids for row in rows] == wanted["input_ids"]
    assert [row.offsets for row in rows] == wanted["offset_mapping"]
    with pytest.raises(MisuseError, match=r"The question leaves 4 of 11 tokens to each window, and windows overlap"):
        model.windows(*texts, what="The question", length=11, stride=4)


def test_ten_thousand_texts_are_encoded_in_chunks_and_come_in_order(monkeypatch):
    model, most = embedder(max_batch=50), []
    run = model.embed_tokens
    monkeypatch.setattr(model, "embed_tokens", lambda rows, **given: most.append(len(rows)) or run(rows, **given))
    texts = [" ".join("abcd"[: 1 + index % 4]) for index in range(10_000)]
    found = model.embed(texts)
    np.testing.assert_array_equal(found[:, 0], [3 + index % 4 for index in range(10_000)])
    assert max(most) == CHUNK
    assert max(feeds["input_ids"].size for feeds in model._session.fed) <= 50 * MAX_LENGTH


def test_a_text_of_a_megabyte_is_refused_or_cut():
    text = "a b " * 250_000
    with pytest.raises(PromptTooLongError, match="has 500002 tokens"):
        embedder().row(text)
    assert len(embedder().row(text, max_tokens=6).ids) == 6


def test_unknown_characters_alone_are_a_text():
    assert embedder().embed(["ßß"]).shape == (1, 3)


def test_a_cut_that_leaves_nothing_of_the_text_is_refused():
    with pytest.raises(MisuseError, match="cannot be cut to 2 tokens; special tokens take 2 of them"):
        embedder().row("a b c", max_tokens=2)


@pytest.mark.parametrize("size", [0, -1, 10**30])
@pytest.mark.parametrize("name", ["max_length", "max_batch"])
def test_sizes_that_no_engine_has_are_refused_when_a_bundle_is_loaded(encoder_toys, name, size):
    with pytest.raises(MisuseError, match=r"was built for texts of 2 to \d+ tokens, and batches of 1 to 65,536"):
        load(encoder_toys.bundle("single"), **{name: size})


def test_numbers_that_are_not_finite_are_an_error_of_the_engine_but_for_those_of_padding():
    model = letter_model(TextClassifier, lambda ids: [np.nan, 0], 2, labels=["a", "b"], problem_type="single_label")
    with pytest.raises(EngineError, match="toy computes NaN or infinity on this engine for a text of 4 tokens"):
        model.classify(["a b"])
    padded = tagger()
    run = padded._session.run
    padded._session.run = lambda feeds: {"logits": np.where(run(feeds)["logits"] == 9, np.nan, run(feeds)["logits"])}
    assert len(padded.tag(["a b c", "a"], aggregation="none", ignore_labels=())[1]) == 1


@pytest.mark.parametrize(("threads", "longest"), [(1, 256), (2, 512)])
def test_a_run_on_a_cpu_has_as_many_tokens_as_stay_in_its_caches(encoder_toys, monkeypatch, threads, longest):
    with load(encoder_toys.bundle("single"), max_batch=4096, threads=threads) as model:
        fed, run = [], model._session.run
        monkeypatch.setattr(model._session, "run", lambda feeds: fed.append(feeds["input_ids"].size) or run(feeds))
        model.classify(["a b c"] * 300)
    assert sum(fed) == 300 * 5
    assert longest - 5 < max(fed) <= longest
