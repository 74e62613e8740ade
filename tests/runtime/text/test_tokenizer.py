import itertools
import json
import random

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from piston.core.errors import BundleCorruptError, Error, MisuseError
from piston.runtime.text.stream_decoder import StreamDecoder
from piston.runtime.text.tokenizer import Tokenizer

SAMPLES = [
    "Hello world, this is the end. It's a test; isn't it?  Two spaces\n\n\tand a tab.",
    "Die Straße führt über die Brücke. Où est le café ? ¿Qué tal, señor?",
    "こんにちは世界。東京は日本の首都です。 中文测试文本 한국어 문장",
    "السَّلامُ عَلَيْكُمْ مرحبا",
    "ภาษาไทยไม่มีช่องว่าง นมัสเต नमस्ते दुनिया क्षत्रिय",
]
TEXTS = [
    *SAMPLES,
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 skin, 🇩🇪🇯🇵 flags, ❤️ heart, 1️⃣ keycap",
    "rare 𝔘𓀀𠜎 and combining é ạ̈ text",
    "a real \ufffd, two \ufffd\ufffd",
    "\ufeffmark first",
    " leading space",
    "x",
    "\n\n",
    "▁ is a letter here? no: ▁",
]
UNKNOWN = "<unk>"
TOOL = "\uff5ctool▁\uff5c"  # has characters that stand for no byte
SPECIAL = ["<s>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=ALPHABET, show_progress=False
    )
    backend.train_from_iterator(SAMPLES, trainer)
    backend.add_tokens(["<think>", TOOL])  # not special
    return backend


def llama():
    backend = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=[UNKNOWN], limit_alphabet=70, show_progress=False)
    backend.train_from_iterator(SAMPLES[:3], trainer)
    tree = json.loads(backend.to_str())
    for token in BYTE_TOKENS:
        tree["model"]["vocab"][token] = len(tree["model"]["vocab"])
    return with_specials(tokenizers.Tokenizer.from_str(json.dumps(tree)))


def unigram():
    words = ["▁", "▁Hello", "▁world", "▁the", "ing", "▁▁", *"abcdefghijklmnopqrstuvwxyz.,;'", "東", "京"]
    vocab = [(UNKNOWN, -20.0)] + [(word, -float(n % 7) - 2) for n, word in enumerate(words)]
    vocab += [(token, -15.0) for token in BYTE_TOKENS]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return with_specials(backend)


def wordpiece():
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=[UNKNOWN], show_progress=False)
    backend.train_from_iterator(SAMPLES, trainer)
    return with_specials(backend)


def end_of_word():
    backend = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[UNKNOWN], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(SAMPLES, trainer)
    return with_specials(backend)


def undecoded():
    backend = tokenizers.Tokenizer(models.WordLevel({UNKNOWN: 0, "hello": 1, "world": 2, "世界": 3}, UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return with_specials(backend)


def with_specials(backend):
    backend.add_special_tokens(SPECIAL)
    return backend


KINDS = [byte_level, llama, unigram, wordpiece, end_of_word, undecoded]
WITH_BYTE_TOKENS = [llama, unigram]
BACKENDS = {kind: kind() for kind in KINDS}


def tokenizer_of(kind):
    return Tokenizer(BACKENDS[kind])


def pieces_of(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(id_) for id_ in ids), decoder.flush()]


def byte_ids(tokenizer, data):
    return [tokenizer.id_of(f"<0x{byte:02X}>") for byte in data]


@st.composite
def ids_of_whole_characters(draw, kind):
    """Any tokens in any order, except that byte tokens come as whole characters, and none of them spells ▁."""
    tokenizer = tokenizer_of(kind)
    bytes_ = {tokenizer.id_of(token) for token in BYTE_TOKENS}
    plain = [[id_] for id_ in range(tokenizer.vocab_size + 3) if id_ not in bytes_]
    chars = st.characters(exclude_categories=["Cs"], exclude_characters="▁").map(
        lambda char: byte_ids(tokenizer, char.encode())
    )
    parts = st.sampled_from(plain) if kind not in WITH_BYTE_TOKENS else st.sampled_from(plain) | chars
    return [*itertools.chain(*draw(st.lists(parts, max_size=12)))]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [byte_level, llama])
def test_decoding_what_was_encoded_gives_the_text_back(kind, text):
    tokenizer = tokenizer_of(kind)
    # SentencePiece has one sign for the space and the letter that looks like it.
    expected = text.replace("▁", " ") if kind is llama else text
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_decode_gives_the_text_the_library_gives(kind, skip, data):
    ids = data.draw(ids_of_whole_characters(kind))
    tokenizer = tokenizer_of(kind)
    assert tokenizer.decode(ids, skip_special_tokens=skip) == BACKENDS[kind].decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_text_after_a_prompt_is_what_the_library_adds_to_the_prompt(kind, data):
    prompt, ids = data.draw(ids_of_whole_characters(kind)), data.draw(ids_of_whole_characters(kind))
    before, whole = BACKENDS[kind].decode(prompt), BACKENDS[kind].decode(prompt + ids)
    assume(not before.endswith("\ufffd"))  # half a character, which the first token completes
    decoder = StreamDecoder(tokenizer_of(kind), after=prompt)
    assert before + "".join([decoder.push(id_) for id_ in ids]) + decoder.flush() == whole


@settings(deadline=None)
@given(data=st.data())
def test_broken_bytes_of_a_byte_level_vocabulary_decode_as_in_the_library(data):
    backend = BACKENDS[byte_level]
    ids = data.draw(st.lists(st.sampled_from([*map(backend.token_to_id, ALPHABET)]), max_size=12))
    assert tokenizer_of(byte_level).decode(ids) == backend.decode(ids)


@pytest.mark.parametrize("kind", WITH_BYTE_TOKENS)
def test_letter_that_looks_like_the_sign_for_a_space_stays_a_letter_when_it_is_spelled_in_bytes(kind):
    tokenizer = tokenizer_of(kind)
    ids = byte_ids(tokenizer, "▁x▁".encode())
    assert tokenizer.decode(ids) == "".join(pieces_of(tokenizer, ids)) == "▁x▁"


@pytest.mark.parametrize("text", [" x", "  x", "\nx"])
def test_space_that_the_decoder_drops_at_the_start_is_dropped_as_a_byte_too(text):
    ids = byte_ids(tokenizer_of(llama), text.encode())
    assert tokenizer_of(llama).decode(ids) == BACKENDS[llama].decode(ids) == text.removeprefix(" ")


@pytest.mark.parametrize("text", SAMPLES)
def test_byte_level_in_a_chain_as_gguf_files_have_it_decodes_as_in_the_library(text):
    backend = byte_level()
    steps = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.ByteLevel()]
    backend.decoder = decoders.Sequence(steps)
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == backend.decode(ids) == text


@pytest.mark.parametrize("kind", WITH_BYTE_TOKENS)
def test_a_broken_byte_does_not_take_the_characters_beside_it_along(kind):
    tokenizer = tokenizer_of(kind)
    data = "😀".encode()
    assert tokenizer.decode(byte_ids(tokenizer, data + b"\xff" + data)) == "😀\ufffd😀"
    assert tokenizer.decode(byte_ids(tokenizer, data[:3] + b"A")) == "\ufffd\ufffd\ufffdA"


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_pieces_of_any_ids_join_to_what_decode_gives(kind, data):
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=20))
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all(piece.encode().decode() == piece for piece in pieces)  # no half of a code point


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [byte_level, llama, unigram])
def test_every_character_is_shown_whole_and_with_its_last_token(kind, text):
    tokenizer = tokenizer_of(kind)
    decoder, shown = StreamDecoder(tokenizer), ""
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    for end, id_ in enumerate(ids, start=1):
        shown += decoder.push(id_)
        data = b"".join(tokenizer.token_bytes(i) for i in ids[:end]).decode(errors="ignore")
        # Decoders that drop the first space have one character less to show.
        assert whole.startswith(shown)
        assert len(data) - len(shown) == (0 if kind is byte_level else 1)
    assert (shown, decoder.flush()) == (whole, "")


@pytest.mark.parametrize(("kind", "byte_tokens"), [(byte_level, ALPHABET), (llama, BYTE_TOKENS)])
@settings(deadline=None)
@given(data=st.data())
def test_no_more_than_three_bytes_are_held_however_broken(kind, byte_tokens, data):
    tokenizer = tokenizer_of(kind)
    ids = [tokenizer.id_of(token) for token in data.draw(st.lists(st.sampled_from(byte_tokens)))]
    assert len(pieces_of(tokenizer, ids)[-1]) <= 3


def test_replacement_character_that_was_written_is_shown_at_once():
    tokenizer = tokenizer_of(byte_level)
    decoder = StreamDecoder(tokenizer)
    assert "".join(map(decoder.push, tokenizer.encode("\ufffd\ufffd"))) == "\ufffd\ufffd"


def test_flush_begins_a_new_text():
    tokenizer = tokenizer_of(llama)
    ids = [*tokenizer.encode("Hello"), *byte_ids(tokenizer, b"\xf0\x9f")]
    decoder = StreamDecoder(tokenizer)
    for _ in range(2):
        assert "".join(map(decoder.push, ids)) + decoder.flush() == "Hello\ufffd\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_never_decodes_more_than_two_tokens_at_a_time(kind):
    class Recorder:
        longest = 0

        def __getattr__(self, name):
            return getattr(BACKENDS[kind], name)

        def decode(self, ids, **options):
            self.longest = max(self.longest, len(ids))
            return BACKENDS[kind].decode(ids, **options)

    recorder = Recorder()
    tokenizer = Tokenizer(recorder)
    pieces_of(tokenizer, list(range(tokenizer.vocab_size)))
    assert recorder.longest <= 2


def test_special_tokens_are_left_out_unless_asked_for():
    tokenizer = tokenizer_of(llama)
    ids = [tokenizer.id_of("<s>"), *tokenizer.encode("Hello"), tokenizer.id_of("<|im_end|>")]
    assert tokenizer.decode(ids) == "Hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s> Hello<|im_end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_without_a_token_are_left_out(kind):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.decode([tokenizer.vocab_size, 2**32 - 1]) == ""
    assert tokenizer.token_of(tokenizer.vocab_size) is None
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


@pytest.mark.parametrize("id_", [-1, 2**32, 1.5, "a", None])
def test_what_is_no_id_is_misuse(id_):
    with pytest.raises(MisuseError, match="not a token id"):
        tokenizer_of(byte_level).decode([id_])


@pytest.mark.parametrize("text", ["\ud800", b"bytes", 3])
def test_what_is_no_text_is_misuse(text):
    with pytest.raises(MisuseError, match="Cannot encode"):
        tokenizer_of(byte_level).encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_byte_level_tokens_join_to_the_bytes_of_the_text(text):
    tokenizer = tokenizer_of(byte_level)
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


@pytest.mark.parametrize(
    ("kind", "token", "expected"),
    [
        (byte_level, "ð", b"\xf0"),
        (byte_level, "Ġ", b" "),
        (byte_level, TOOL, TOOL.encode()),
        (llama, "<0xE2>", b"\xe2"),
        (llama, "<0x0A>", b"\n"),
        (llama, "▁th", b" th"),
        (llama, "<s>", b"<s>"),
        (unigram, "▁Hello", b" Hello"),
        (unigram, "東", "東".encode()),
        (wordpiece, "##s", b"s"),
        (wordpiece, "the", b" the"),
    ],
)
def test_token_bytes_are_what_the_token_adds_to_a_text(kind, token, expected):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.token_bytes(tokenizer.id_of(token)) == expected


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path):
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    saved = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert saved["truncation"]
    assert saved["padding"]
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    assert tokenizer.encode(SAMPLES[0]) == tokenizer_of(byte_level).encode(SAMPLES[0])
    assert tokenizer.encode("x") == tokenizer_of(byte_level).encode("x")


def test_encode_adds_what_begins_a_text_unless_told_not_to(tmp_path):
    backend = byte_level()
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json", bos_token_id=bos, eos_token_ids=[1])
    plain = tokenizer.encode("Hello", add_special_tokens=False)
    assert tokenizer.encode("Hello") == [bos, *plain]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (bos, (1,))


def test_special_token_spelt_out_in_the_text_is_encoded_as_that_token():
    tokenizer = tokenizer_of(byte_level)
    assert tokenizer.encode("<|im_end|>") == [tokenizer.id_of("<|im_end|>")]


def test_vocabulary_counts_added_tokens_and_finds_them_both_ways():
    tokenizer = tokenizer_of(undecoded)
    assert tokenizer.vocab_size == 6
    assert tokenizer.token_of(tokenizer.id_of("<|im_end|>")) == "<|im_end|>"
    assert tokenizer.id_of("absent") is None
    assert tokenizer.is_special(tokenizer.id_of("<s>"))
    assert not tokenizer.is_special(tokenizer.id_of("hello"))


def test_text_beyond_a_vocabulary_without_unknown_token_is_blamed_on_the_bundle():
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(BundleCorruptError, match="cannot encode"):
        tokenizer.encode("b")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"model": {"type": "X"}}'])
def test_malformed_file_is_corrupt_and_named_in_one_line(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleCorruptError, match=r"tokenizer\.json") as caught:
        Tokenizer.open(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_corrupt(tmp_path):
    with pytest.raises(BundleCorruptError, match="No such file"):
        Tokenizer.open(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("kind", [llama, unigram, wordpiece])
def test_damaged_files_raise_nothing_but_our_errors(tmp_path, kind):
    rng = random.Random(0)  # noqa: S311  seeded on purpose
    path, outcomes = tmp_path / "tokenizer.json", set()
    for _ in range(150):
        path.write_text(json.dumps(damaged(json.loads(BACKENDS[kind].to_str()), rng)), "utf-8")
        try:
            tokenizer = Tokenizer.open(path)
            tokenizer.decode([*tokenizer.encode("Hello wörld 😀"), *range(8)])
            outcomes.add("works")
        except Error as error:
            outcomes.add(type(error))
    assert outcomes >= {"works", BundleCorruptError}


def damaged(tree, rng):
    """The tree with one value somewhere removed or replaced, most often near the root."""
    node = tree
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
            break
        node = node[key]
    if rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice([None, -1, 1 << 40, "", "x", [], {}, True, [["a", "b"]], {"type": "BPE"}])
    return tree
