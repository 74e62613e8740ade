import hashlib
import json

import pytest
from tokenizers import processors
from toy_model import BEGIN, END, byte_backend, byte_tokenizer, ids_of

from piston.core.errors import MisuseError
from piston.evaluation.corpus import Document, encode, read_corpus
from piston.evaluation.windows import Window
from piston.runtime.text.tokenizer import Tokenizer


def framing_tokenizer():
    backend = byte_backend()
    special = [("<s>", BEGIN), ("<end>", END)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A <end>", special_tokens=special)
    return Tokenizer(backend, bos_token_id=BEGIN, eos_token_ids=(END,))


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_a_text_is_one_document_with_the_hash_of_its_bytes(tmp_path):
    path = write(tmp_path / "text", "no é\r\nhello")
    corpus = read_corpus(path, byte_tokenizer())
    assert corpus.documents == (Document((), tuple(ids_of("no é\r\nhello"))),)
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert corpus.path == str(path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    corpus = read_corpus(write(tmp_path / "text", b"\xef\xbb\xbfno"), byte_tokenizer())
    assert corpus.documents[0].token_ids == tuple(ids_of("no"))


def test_what_the_tokenizer_puts_in_front_is_kept_apart_and_what_it_appends_is_dropped():
    assert encode("no", framing_tokenizer()) == Document((BEGIN,), tuple(ids_of("no")))


def test_a_special_token_spelt_in_the_text_stays_in_the_text():
    assert encode("<s>no<end>", framing_tokenizer()) == Document((BEGIN,), (BEGIN, *ids_of("no"), END))


def test_each_line_of_jsonl_is_a_document(tmp_path):
    lines = [json.dumps({"text": "no", "id": 3}), "", json.dumps("hello")]
    corpus = read_corpus(write(tmp_path / "text.jsonl", "\n".join(lines)), byte_tokenizer())
    assert [document.token_ids for document in corpus.documents] == [tuple(ids_of("no")), tuple(ids_of("hello"))]
    assert corpus.num_tokens == len(ids_of("no")) + len(ids_of("hello"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("text.JSONL", '{"text": "no"}\n"hello"'),
        ("text.json", '[{"text": "no"}, "hello"]'),
        ("text.csv", "id,text\n1,no\n2,hello\n"),
    ],
)
def test_each_record_is_a_document(tmp_path, name, text):
    corpus = read_corpus(write(tmp_path / name, text), byte_tokenizer())
    assert [document.token_ids for document in corpus.documents] == [tuple(ids_of("no")), tuple(ids_of("hello"))]


@pytest.mark.parametrize(("max_tokens", "lengths"), [(1, [1]), (4, [4]), (5, [4, 1]), (99, [4, 3])])
def test_max_tokens_keeps_the_beginning_over_all_documents(tmp_path, max_tokens, lengths):
    path = write(tmp_path / "text.jsonl", '"abcd"\n"efg"')
    documents = read_corpus(path, byte_tokenizer(), max_tokens).documents
    assert [len(document.token_ids) for document in documents] == lengths


def test_a_window_is_fed_all_but_its_last_token():
    document = Document((9,), (0, 1, 2, 3, 4, 5))
    assert document.fed(Window(1, 3, 5)) == [9, 1, 2, 3]
    assert document.targets(Window(1, 3, 5)) == [3, 4]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("text", "", "holds no text"),
        ("text", " \n\t\n", "holds no text"),
        ("text.jsonl", '{"text": ""}', "holds no text"),
        ("text", b"abc\xff", "is not UTF-8 (invalid start byte at byte 3)"),
        ("text.jsonl", '"no"\n{', "line 2, is not JSON"),
        ("text.jsonl", '"no"\n\n{"body": "no"}', "line 3, has no field 'text'; its fields are: 'body'"),
        ("text.csv", "id,body\n1,no\n", "line 2, has no field 'text'; its fields are: 'id', 'body'"),
        ("text.parquet", b"PAR1\x00\xff", "is not UTF-8 text but Parquet"),
        ("text", "no".encode("utf-16"), "is not UTF-8 but UTF-16"),
        ("text.jsonl", "[1]", "line 1, has no text"),
        ("text.jsonl", "[" * 100_000, "line 1, is not JSON"),
    ],
)
def test_a_file_without_text_is_misuse(tmp_path, name, data, message):
    with pytest.raises(MisuseError) as caught:
        read_corpus(write(tmp_path / name, data), byte_tokenizer())
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_and_a_directory_are_misuse(tmp_path):
    with pytest.raises(MisuseError, match="No such file"):
        read_corpus(tmp_path / "absent", byte_tokenizer())
    with pytest.raises(MisuseError, match="directory"):
        read_corpus(tmp_path, byte_tokenizer())
