"""Text of a GGUF file is split as the name in tokenizer.ggml.pre says, and its end tokens end answers."""

import json

import gguf
import pytest
from gguf_files import toy_tokens, write_gguf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from piston.checkpoint.checkpoint import load_config, locate
from piston.checkpoint.gguf.splits import REFUSED, SPLITS
from piston.checkpoint.gguf.tokenizer import gguf_tokenizer
from piston.core.bundle.gguf_header import GgufHeader
from piston.core.errors import CheckpointError

TEXT = (
    "It's 12345 o'clock; we'LL pay 1,234.5 EUR\n\n\n  for  x**2 == y  \r\nnaïve Café HTTPServer \t tabs 你好\uff0c世界 "
    "한국어 कि ٣٤ e\u0301a \U0001f469\u200d\U0001f469 'tis   "
)


def pieces(patterns, text=TEXT):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


def test_the_demo_file_takes_each_digit_alone(demo_checkpoint):
    tokenizer = gguf_tokenizer(GgufHeader.read(demo_checkpoint))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("10  20   30")["input_ids"])
    assert tokens == ["1", "0", "ĠĠ", "2", "0", "ĠĠĠ", "3", "0"]


def test_the_demo_file_is_split_as_the_tokenizer_its_model_was_published_with(demo_checkpoint):
    header = GgufHeader.read(demo_checkpoint)
    tokens = header.keys["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in header.keys["tokenizer.ggml.merges"]]
    published = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    published.decoder = decoders.ByteLevel()
    ids = gguf_tokenizer(header)(TEXT)["input_ids"]
    assert ids == published.encode(TEXT).ids
    assert published.decode(ids) == TEXT


def test_names_that_transformers_knows_split_as_it_splits():
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    for name, pattern in GGUF_PRE_TOKENIZER_SPLITS.items():
        assert pieces(SPLITS[name]) == pieces([pattern]), name


# One line of text for each kind of split, and the pieces that llama.cpp's expressions for the name cut it into.
CASES = {
    "gpt-2": ("I'm 1234  ok", ["I", "'m", " 1234", " ", " ok"]),
    "smollm": ("v1234  ok", ["v", "1", "2", "3", "4", " ", " ok"]),
    "llama-bpe": ("I'M 1234  ok", ["I", "'M", " ", "123", "4", " ", " ok"]),
    "qwen2": ("I'M 12(x)", ["I", "'M", " ", "1", "2", "(x", ")"]),
    "ufakzeka": ("I'M 12", ["I", "'M", " ", "1", "2"]),
    "tekken": ("fooBar12", ["foo", "Bar", "1", "2"]),
    "gpt-4o": ("fooBar's 1234", ["foo", "Bar's", " ", "123", "4"]),
    "falcon": ("a,b 12345", ["a", ",", "b", " ", "123", "45"]),
    "default": ("a$b 12345", ["a", "$", "b", " ", "123", "45"]),
    "deepseek-coder": ("ab 12\n!", ["ab", " ", "1", "2", "\n", "!"]),
    "deepseek-llm": ("ab Éc 你ok 1234!", ["ab", " É", "c", " ", "你", "ok", " ", "1234", "!"]),
    "deepseek-v3": ("你好ok 1234!", ["你好", "ok", " ", "123", "4", "!"]),
    "bloom": ("one two, three", ["one", " two", ",", " three"]),
    "viking": ("one 12", ["one", " ", "1", "2"]),
    "tiny_aya": ("x1234567", ["x", "1", "234", "567"]),
    "minicpm5": ("I'M 1234", ["I", "'M", " ", "123", "4"]),
    "seed-coder": ("!!\n\nx", ["!!", "\n\n", "x"]),
    "bailingmoe": ("a\n\nb", ["a", "\n\n", "b"]),
    "laguna": ("a!\nb", ["a", "!", "\n", "b"]),
    "exaone-moe": ("new york 12", ["new york", " ", "1", "2"]),
    "jais-2": ("a" + " " * 6 + "b", ["a", " " * 4, " ", " b"]),
    "youtu": ("你好\uff0cok", ["你好", "\uff0c", "ok"]),
    "chameleon": ("IMGIMGABZx12,", ["IMGIMGABZ", "x", "1", "2", ","]),
    "spark2_5": ("a!\n\nb", ["a", "!", "\n", "\n", "b"]),
    "qwen35": ("कि 12", ["कि", " ", "1", "2"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_name_splits_text_by_its_expressions(name):
    text, expected = CASES[name]
    assert pieces(SPLITS[name], text) == expected


@pytest.mark.parametrize("name", [*REFUSED, "of-tomorrow"])
def test_a_name_that_is_not_supported_is_refused_by_name(tmp_path, name):
    write_gguf(tmp_path / "toy.gguf", keys={"tokenizer.ggml.pre": name})
    with pytest.raises(CheckpointError, match=name):
        gguf_tokenizer(GgufHeader.read(tmp_path / "toy.gguf"))


def test_a_file_without_a_name_has_llama_cpps_default_split(tmp_path):
    write_gguf(tmp_path / "toy.gguf", drop=["tokenizer.ggml.pre"])
    tokenizer = gguf_tokenizer(GgufHeader.read(tmp_path / "toy.gguf"))
    cut = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a$b 12345")]
    assert cut == ["a", "$", "b", "Ġ", "123", "45"]


def tokenizer_of(path, **keys):
    write_gguf(path, keys={f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    return gguf_tokenizer(GgufHeader.read(path))


def test_llama3_starts_with_bos_unless_the_file_says_otherwise(tmp_path):
    path = tmp_path / "toy.gguf"
    assert tokenizer_of(path, pre="llama-bpe", bos_token_id=1)("the")["input_ids"][0] == 1
    assert tokenizer_of(path, pre="llama-bpe", bos_token_id=1, add_bos_token=False)("the")["input_ids"][0] != 1
    assert tokenizer_of(path, pre="gpt-2", bos_token_id=1)("the")["input_ids"][0] != 1


def test_llama3_takes_a_word_that_is_a_token_whole_whatever_the_merges_say(tmp_path):
    tokens, merges, _ = toy_tokens(tmp_path)
    path, fox = tmp_path / "toy.gguf", tokens.index("Ġfox")
    assert tokenizer_of(path, pre="llama-bpe", merges=merges[:1])(" fox")["input_ids"] == [fox]
    assert tokenizer_of(path, pre="gpt-2", merges=merges[:1])(" fox")["input_ids"] != [fox]


def test_control_tokens_of_any_script_stay_whole(tmp_path):
    tokens, merges, kinds = toy_tokens(tmp_path)
    tokens[-1], kinds[-1] = "<\uff5cUser\uff5c>", 3  # as DeepSeek writes it
    tokenizer = tokenizer_of(tmp_path / "toy.gguf", tokens=tokens, token_type=kinds, merges=merges[:1])
    ids = tokenizer(f"the{tokens[-1]}")["input_ids"]
    assert ids[-1] == len(tokens) - 1
    assert tokenizer.decode(ids) == f"the{tokens[-1]}"


SPACE = "\u2581"


def write_sentencepiece(path, architecture, **keys):
    """A file with the pieces e, h, t, space, th, the, and the with a space, of falling rank."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = ["e", "h", "t", SPACE, "th", "the", f"{SPACE}the"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    scores = [0.0] * 259 + [-10.0, -10.0, -10.0, -10.0, -3.0, -2.0, -1.0]
    common = {"tokens": tokens + pieces, "scores": scores, "token_type": kinds, "model": "llama", "bos_token_id": 1}
    write_gguf(
        path,
        architecture,
        keys={f"tokenizer.ggml.{name}": value for name, value in (common | keys).items()},
        drop=["tokenizer.ggml.pre", "tokenizer.ggml.merges"],
        vocab_size=len(tokens) + len(pieces),
    )


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma2"])
@pytest.mark.parametrize(("key", "first"), [(None, "▁the"), (True, "▁the"), (False, "the")])
def test_sentencepiece_puts_a_space_first_as_add_space_prefix_says(tmp_path, architecture, key, first):
    path = tmp_path / "toy.gguf"
    write_sentencepiece(path, architecture, add_space_prefix=key)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "bos_token": "t"}))
    tokenizer = gguf_tokenizer(GgufHeader.read(path))
    ids = tokenizer("the the")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", first, "▁the"]
    assert tokenizer.decode(ids[1:]) == "the the"


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({"eos_token_id": 2}, (2,)),
        ({"eos_token_id": 4, "eot_token_id": 3}, (2, 3, 4)),
        ({"eom_token_id": 5}, (2, 5)),
        ({"fim_pad_token_id": 3, "fim_rep_token_id": 4}, (2,)),
        ({"eos_token_id": None}, (2,)),  # <|end|> is a control token of the toy's vocabulary
    ],
)
def test_every_end_token_of_the_file_ends_answers(tmp_path, keys, ids):
    path = tmp_path / "toy.gguf"
    write_gguf(path, keys={f"tokenizer.ggml.{name}": value for name, value in keys.items()})
    assert load_config(locate(str(path))).eos_token_id in (list(ids), ids[0] if len(ids) == 1 else None)


def test_a_token_that_only_looks_like_an_end_does_not_end_answers(tmp_path):
    tokens, merges, kinds = toy_tokens(tmp_path)
    tokens[-1] = "</s>"
    path = tmp_path / "toy.gguf"
    keys = {"tokens": tokens, "token_type": kinds, "merges": merges[:1]}
    write_gguf(path, keys={f"tokenizer.ggml.{name}": value for name, value in keys.items()})
    assert load_config(locate(str(path))).eos_token_id == [2]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"tokens": ["a", "b"]}, "2 tokens"),
        ({"token_type": [1]}, "token_type"),
        ({"eot_token_id": 9999}, "eot_token_id"),
        ({"model": "bert"}, "'bert'"),
        ({"merges": None}, "merges"),
    ],
)
def test_a_damaged_vocabulary_is_told(tmp_path, keys, told):
    path = tmp_path / "toy.gguf"
    write_gguf(path, keys={f"tokenizer.ggml.{name}": value for name, value in keys.items()})
    with pytest.raises(CheckpointError, match=told):
        load_config(locate(str(path)))


def test_a_part_of_a_split_file_is_refused_with_the_way_to_merge(tmp_path):
    path = tmp_path / "m-00002-of-00003.gguf"
    write_gguf(path, keys={"split.no": 1, "split.count": 3, "split.tensors.count": 21})
    with pytest.raises(CheckpointError, match=r"part 2 of 3 .* --merge m-00001-of-00003.gguf"):
        load_config(locate(str(path)))


def test_a_part_that_states_nothing_but_its_number_is_refused_in_the_same_words(tmp_path):
    """The gguf package writes the keys of the model into the first part alone."""
    path = tmp_path / "m-00002-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    del writer.kv_data[0]["general.architecture"]
    for key, value in {"split.no": 1, "split.count": 3, "split.tensors.count": 21}.items():
        writer.add_uint16(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"part 2 of 3 .* --merge m-00001-of-00003.gguf"):
        load_config(locate(str(path)))
