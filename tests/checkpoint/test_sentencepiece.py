import json
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
from sentencepiece_files import SOURCES, TARGETS, pieces_of, trained, write_marian, write_model
from transformers import M2M100Tokenizer, MarianTokenizer
from transformers.convert_slow_tokenizer import MBart50Converter, MBartConverter

from piston.checkpoint.checkpoint import load_config, locate
from piston.checkpoint.generation_defaults import GenerationDefaults
from piston.checkpoint.tokenizer import write_tokenizer
from piston.core.errors import CheckpointError
from piston.export.languages import language_settings
from piston.runtime.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # it does not use it
TEXTS = [
    "the sea is calm",
    "  many     spaces   inside and behind   ",
    "one\r\ntwo\tthree\n\nfour",
    "naïve café — “quoted” ﬁne ①",
    "你好，世界。 안녕 세계 مرحبا ก็",  # noqa: RUF001
    "👩‍👩‍👧 👍🏽 zzz ☃☃ q☃q",
    "</s> <pad> and <unk> spelled out",
    "▁already▁marked",
    "a\u200bb\u00a0c\u3000d",
    "Meer größer Öl",
    "",
    " ",
]


def converted(directory, out):
    """The runtime's tokenizer of a checkpoint."""
    out.mkdir()
    checkpoint = locate(str(directory))
    defaults = GenerationDefaults(eos_token_ids=(), bos_token_id=None, pad_token_id=None)
    spec, _ = write_tokenizer(checkpoint, load_config(checkpoint, lambda _: None), defaults, out)
    answers = out / "answers.tokenizer.json"
    return Tokenizer.open(
        out / "tokenizer.json", answers=answers if answers.exists() else None, unknown_ids=spec.unknown_ids
    )


def assert_same(found, slow, texts=TEXTS, num_ids=None):
    """The same ids of texts, and the same text of random ids."""
    for text in texts:
        assert found.encode(text) == slow(text)["input_ids"], text
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(num_ids or len(slow), size=rng.integers(1, 12)).tolist()
        assert found.decode(ids).strip() == slow.decode(ids, skip_special_tokens=True), ids


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("left_out", [0, 25])
def test_marians_sources_and_answers_are_those_of_sentencepiece(tmp_path, kind, left_out):
    slow = write_marian(tmp_path / "checkpoint", kind=kind, left_out=left_out)
    found = converted(tmp_path / "checkpoint", tmp_path / "out")
    assert_same(found, slow)
    assert (tmp_path / "out/answers.tokenizer.json").exists()
    for text in [*TARGETS, "größer als der Wind", "  das   Meer "]:
        assert found.encode_answer(text) == slow(text_target=text)["input_ids"][:-1], text


def test_codes_of_marians_target_languages_are_tokens(tmp_path):
    slow = write_marian(tmp_path / "checkpoint", codes=(">>deu<<", ">>nld<<"))
    found = converted(tmp_path / "checkpoint", tmp_path / "out")
    codes = [slow.convert_tokens_to_ids(code) for code in (">>deu<<", ">>nld<<")]
    assert_same(found, slow, [">>deu<< the sea is calm", ">>nld<<the wind", "calm"], num_ids=min(codes))
    assert all(map(found.is_special, codes))


def test_two_vocabularies_of_marian_are_read_by_one_and_written_by_the_other(tmp_path):
    directory = tmp_path / "checkpoint"
    write_marian(directory)
    target = sentencepiece.SentencePieceProcessor(model_file=str(directory / "target.spm"))
    vocabulary = ["</s>", "<unk>", *sorted(set(pieces_of(target)) - {"<unk>"}, reverse=True), "<pad>"]
    (directory / "target_vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(vocabulary)}))
    settings = json.loads((directory / "tokenizer_config.json").read_text()) | {"separate_vocabs": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    slow = MarianTokenizer.from_pretrained(directory)
    found = converted(directory, tmp_path / "out")
    for text in TEXTS:
        assert found.encode(text) == slow(text)["input_ids"]
    ids = slow(text_target=TARGETS)["input_ids"]
    assert [found.decode(row) for row in ids] == slow.batch_decode(ids, skip_special_tokens=True)


def test_m2m_100_is_that_of_sentencepiece_with_its_languages(tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    model = trained(directory / "sentencepiece.bpe.model", SOURCES + TARGETS, "bpe", 150)
    pieces = sorted(set(pieces_of(model)) - {"<unk>"})[4:]  # some have no number
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *reversed(pieces)]
    (directory / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(vocabulary)}))
    settings = {"tokenizer_class": "M2M100Tokenizer", "src_lang": "de", "tgt_lang": "en"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    slow = M2M100Tokenizer.from_pretrained(directory)
    size = len(vocabulary) + len(slow.lang_code_to_id) + 8
    write_model(directory, size, "m2m_100", pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
    found = converted(directory, tmp_path / "out")
    assert_same(found, slow, num_ids=len(vocabulary))
    code = slow.get_lang_id("fr")
    assert found.is_special(code)
    assert found.token_of(code) == "__fr__"
    languages = language_settings(locate(str(directory)), load_config(locate(str(directory)), lambda _: None))
    assert languages["languages"] == slow.lang_code_to_id
    assert languages["source_frame"] == {"before": [-1], "after": [2]}


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_t5_of_a_sentencepiece_file_alone_is_that_of_sentencepiece(tmp_path, name):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    ends = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    model = trained(directory / "spiece.model", SOURCES + TARGETS, "unigram", 150, **ends)
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    write_model(directory, model.get_piece_size(), name)
    found = converted(directory, tmp_path / "out")
    for text in TEXTS:
        if "</s>" not in text:
            assert found.encode(text) == [*model.encode(text), 1], text
    ids = model.encode(SOURCES)
    assert [found.decode(row) for row in ids] == [model.decode(row) for row in ids]


# class, kind of model, languages that are asked for, and their numbers in published checkpoints: facebook/
# nllb-200-distilled-600M (256,000 pieces), mbart-large-cc25 and mbart-large-50 (250,000 pieces).
MULTILINGUAL = {
    "NllbTokenizer": ("bpe", ("eng_Latn", "deu_Latn"), {"ace_Arab": 256001, "eng_Latn": 256047, "<mask>": 256203}),
    "MBartTokenizer": ("unigram", ("en_XX", "de_DE"), {"ar_AR": 250001, "en_XX": 250004, "<mask>": 250026}),
    "MBart50Tokenizer": ("unigram", ("en_XX", "de_DE"), {"ar_AR": 250001, "en_XX": 250004, "<mask>": 250053}),
}
PIECES = {"NllbTokenizer": 256_000, "MBartTokenizer": 250_000, "MBart50Tokenizer": 250_000}


def write_multilingual(directory, name="NllbTokenizer", num_ids=None, **settings):
    """A checkpoint with a SentencePiece file alone; returns SentencePiece's model."""
    directory.mkdir()
    kind, (source, target), numbers = MULTILINGUAL[name]
    model = trained(directory / "sentencepiece.bpe.model", SOURCES + TARGETS, kind, 150)
    named = {"tokenizer_class": name, "src_lang": source, "tgt_lang": target}
    (directory / "tokenizer_config.json").write_text(json.dumps(named | settings))
    size = num_ids or model.get_piece_size() + numbers["<mask>"] - PIECES[name] + 1
    family = "m2m_100" if name == "NllbTokenizer" else "mbart"
    write_model(directory, size, family, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
    return model


def framed(name, ids, language):
    """The ids of a source as SentencePiece gives them, with what the class puts around them."""
    ids = [index + 1 if index else 3 for index in ids]
    return [*ids, 2, language] if name == "MBartTokenizer" else [language, *ids, 2]


@pytest.mark.parametrize("name", MULTILINGUAL)
def test_languages_of_a_sentencepiece_file_alone_are_numbered_as_in_published_checkpoints(tmp_path, name):
    _, (source, target), numbers = MULTILINGUAL[name]
    model = write_multilingual(tmp_path / "checkpoint", name)
    found = converted(tmp_path / "checkpoint", tmp_path / "out")
    for token, number in numbers.items():
        assert found.id_of(token) == number - PIECES[name] + model.get_piece_size()
    assert [found.id_of(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    language = found.id_of(source)
    for text in TEXTS:
        if "</s>" not in text:
            assert found.encode(text) == framed(name, model.encode(text), language), text
    for text in [*SOURCES, *TARGETS]:
        ids = [index + 1 if index else 3 for index in model.encode(text)]
        assert found.decode([language, *ids, 2]) == model.decode(model.encode(text)).replace(" ⁇ ", "")
    checkpoint = locate(str(tmp_path / "checkpoint"))
    settings = language_settings(checkpoint, load_config(checkpoint, lambda _: None))
    assert settings["languages"][target] == found.id_of(target)
    assert len(settings["languages"]) == numbers["<mask>"] - PIECES[name] - 1
    before, after = (settings["source_frame"][part] for part in ("before", "after"))
    assert [*before, *after] == framed(name, [], -1)


@pytest.mark.parametrize(
    ("name", "converter"), [("MBartTokenizer", MBartConverter), ("MBart50Tokenizer", MBart50Converter)]
)
def test_mbarts_of_a_sentencepiece_file_alone_are_those_of_transformers_own_conversion(tmp_path, name, converter):
    model = write_multilingual(tmp_path / "checkpoint", name)
    found = converted(tmp_path / "checkpoint", tmp_path / "out")
    original = SimpleNamespace(
        vocab_file=str(tmp_path / "checkpoint/sentencepiece.bpe.model"),
        convert_tokens_to_ids=lambda token: {"</s>": 2, "en_XX": model.get_piece_size() + 4}[token],
    )
    reference = converter(original).converted()
    for text in [*SOURCES, *TARGETS, *TEXTS[3:6]]:
        assert found.encode(text) == reference.encode(text).ids, text


@pytest.mark.parametrize(
    "changes",
    [
        {"num_ids": 160},  # fewer than the languages take
        {"num_ids": 150 + 1 + 202 + 1 + 40},  # more languages than the class knows
        {"extra_special_tokens": ["eng_Latn", "tlh_Latn"]},
    ],
)
def test_languages_that_nothing_numbers_are_refused_with_the_remedy(tmp_path, changes):
    write_multilingual(tmp_path / "checkpoint", **changes)
    with pytest.raises(CheckpointError, match=r"which ids its languages have is not known. Save .*tokenizer.json"):
        converted(tmp_path / "checkpoint", tmp_path / "out")


def test_nllb_with_numbered_languages_is_that_of_sentencepiece(tmp_path):
    names = {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>", 151: "deu_Latn", 152: "eng_Latn", 153: "<mask>"}
    added = {str(token_id): {"content": name, "special": True} for token_id, name in names.items()}
    codes = ["deu_Latn", "eng_Latn"]
    settings = {"additional_special_tokens": codes, "added_tokens_decoder": added}
    model = write_multilingual(tmp_path / "checkpoint", num_ids=160, **settings)
    found = converted(tmp_path / "checkpoint", tmp_path / "out")
    assert [found.id_of(code) for code in codes] == [151, 152]
    for text in TEXTS:  # transformers keeps a space at the end, as the tokenizer.json of NLLB does
        if "</s>" not in text and text == text.rstrip():  # ids from 3 on are one higher, behind <s>, <pad>, </s>, <unk>
            ids = [index + 1 if index else 3 for index in model.encode(text)]
            assert found.encode(text) == [152, *ids, 2], text


def test_a_model_with_user_defined_pieces_is_refused_with_the_remedy(tmp_path):
    write_marian(tmp_path / "checkpoint")
    trained(tmp_path / "checkpoint/source.spm", SOURCES, "unigram", 120, user_defined_symbols=["<sep>"])
    with pytest.raises(CheckpointError, match=r"source.spm has user-defined or byte pieces.*tokenizer.json first"):
        converted(tmp_path / "checkpoint", tmp_path / "out")
