from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors
from toy_model import BEGIN, CHAT, VOCAB_SIZE, write_bundle

from piston.core.bundle.manifest import TokenizerSpec
from piston.core.errors import MisuseError
from piston.data.overlap import overlap
from piston.data.rows import RowOptions, hash_rows, load_rows
from piston.runtime.bundle import Bundle

TEXT = "".join(f"Sentence {n} says that {n * n % 97} hellos no longer fit on page {n % 13}.\n" for n in range(400))


@pytest.fixture
def model(tmp_path):
    write_bundle(tmp_path / "model", engines=(), kind="model")
    return Bundle.open(tmp_path / "model")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def rows_of(source, model, **options):
    return load_rows([source], model, RowOptions(**({"num_rows": 4, "seq_len": 32} | options)))


def test_rows_say_where_they_came_from(model, text):
    rows = rows_of(text, model, seed=2)
    found = rows.to_json()
    assert rows.ids.shape == (4, 32)
    assert (found["rows"], found["seq_len"], found["seed"], found["sha256"]) == (4, 32, 2, rows.sha256)
    assert [file["name"] for file in found["files"]] == ["data.txt"]


def test_the_same_data_gives_the_same_hash(model, text):
    assert rows_of(text, model).sha256 == rows_of(text, model).sha256 != rows_of(text, model, seed=1).sha256


def test_a_hash_is_of_values_and_shape_not_of_how_they_are_stored():
    ids = np.arange(12).reshape(3, 4)
    same = [ids.astype(np.int32), ids.astype(">i8"), np.asfortranarray(ids), ids[:, ::-1][:, ::-1]]
    assert {hash_rows(array) for array in same} == {hash_rows(ids)}
    assert hash_rows(ids.reshape(4, 3)) != hash_rows(ids)


def test_the_builtin_texts_fill_the_default_rows_without_the_held_out_ones(model):
    rows = load_rows(["builtin"], model, RowOptions(num_rows=64, seq_len=90))
    names = [file.name for file in rows.files]
    assert names[:4] == ["languages.txt", "prose.txt", "technical.txt", "chat.jsonl"]
    assert all(name.startswith("Python ") for name in names[4:])
    assert len(names) == len(set(names)) > 4
    held_out = Path(__file__).parent / "held_out.txt"
    everything = load_rows(["builtin"], model, RowOptions(num_rows=4000, seq_len=90))
    evaluated = load_rows([held_out], model, RowOptions(num_rows=170, seq_len=90))
    # A byte vocabulary: 40 tokens are about as long a passage as 13 of a real one.
    assert overlap(evaluated.ids, everything.ids, n=40).share < 0.001


def test_builtin_leaves_conversations_out_where_no_template_is(tmp_path):
    write_bundle(tmp_path / "model", template=None, engines=(), tokenizer=TokenizerSpec())
    rows = rows_of("builtin", Bundle.open(tmp_path / "model"))
    assert "chat.jsonl" not in {file.name for file in rows.files}


def test_conversations_are_rendered(model, tmp_path):
    path = tmp_path / "chat.jsonl"
    line = '{"messages": [{"role": "user", "content": "NUMBER hello"}, {"role": "assistant", "content": "no"}]}\n'
    path.write_text("".join(line.replace("NUMBER", str(n)) for n in range(99)), encoding="utf-8")
    ids = rows_of(path, model).ids
    assert "for message in messages" in CHAT
    assert "<bot>no<end>" in model.tokenizer().decode(ids[0], skip_special_tokens=False)


def test_rows_begin_as_the_tokenizer_begins_a_text(model, text):
    tokenizer = model.tokenizer()
    tokenizer._backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    assert tokenizer.frame[0] == [BEGIN]
    assert model.tokenizer().frame[0] == []


def test_too_few_tokens_are_refused_with_both_numbers(model, text):
    count = len(model.tokenizer().encode(TEXT))
    with pytest.raises(MisuseError, match=rf"has {count:,} tokens.* 9,000 rows \(288,000 tokens\)"):
        rows_of(text, model, num_rows=9000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rows": 0}, "0 calibration rows"),
        ({"seq_len": 97}, "97 tokens .* toy takes 2 to 96"),
        ({"seq_len": 1}, "rows of 1 tokens"),
        ({"seq_len": 0}, "rows of 0 tokens"),
        ({"seed": -1}, "seed of the rows is -1"),
        ({"field": "body"}, "no records with a field 'body'"),
    ],
)
def test_rows_that_cannot_be_are_refused(model, text, options, message):
    with pytest.raises(MisuseError, match=message):
        rows_of(text, model, **options)


def test_no_data_is_refused(model):
    with pytest.raises(MisuseError, match="No data was given"):
        load_rows([], model, RowOptions(seq_len=32))


def test_ids_outside_the_vocabulary_are_refused(model, tmp_path):
    np.save(tmp_path / "ids.npy", np.array([3, VOCAB_SIZE]))
    with pytest.raises(MisuseError, match=rf"ids\.npy has token ids from 3 to {VOCAB_SIZE}; .* 0 to {VOCAB_SIZE - 1}"):
        rows_of(tmp_path / "ids.npy", model)


def test_random_ids_are_refused(model, tmp_path):
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, VOCAB_SIZE, 4000))
    with pytest.raises(MisuseError, match=r"ids\.npy looks like noise: its token ids"):
        rows_of(tmp_path / "ids.npy", model)


def test_random_characters_are_refused(model, tmp_path):
    (tmp_path / "a.txt").write_text("".join(map(chr, np.random.default_rng(0).integers(32, 127, 5000))))
    with pytest.raises(MisuseError, match="its characters pack no better"):
        rows_of(tmp_path / "a.txt", model)
