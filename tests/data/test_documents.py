import io
import json
from pathlib import Path

import numpy as np
import pytest

from piston.core.errors import MisuseError, TemplateError
from piston.data.documents import parse_documents
from piston.runtime.text.chat_template import ChatTemplate

TEMPLATE = ChatTemplate(
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% if m.role == 'alien' %}{{ raise_exception('who?') }}"
    "{% endif %}{% endfor %}",
    special_tokens={},
)
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def contents(data, name, **options):
    data = data if isinstance(data, bytes) else data.encode()
    found = [document.content for document in parse_documents(data, Path(name), **options)]
    return [content if isinstance(content, str) else content.tolist() for content in found]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def lines(*values):
    return "\n".join(json.dumps(value) for value in values)


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        ("one\n\ntwo", "a.txt", ["one\n\ntwo"]),
        ("one\n\ftwo", "a.txt", ["one\n", "two"]),
        ("one\f \n\f", "a.md", ["one"]),
        (b"\xef\xbb\xbfb\xc3\xa9", "a", ["bé"]),
        (lines("one", {"text": "two", "id": 4}), "a.jsonl", ["one", "two"]),
        (lines([1, 2], {"text": [3]}), "a.ndjson", [[1, 2], [3]]),
        (lines("a\u2028b"), "a.jsonl", ["a\u2028b"]),
        ("\n" + lines("one") + "\n\n", "a.jsonl", ["one"]),
        (lines("one", {"text": "two"}), "a.JSONL", ["one", "two"]),
        (json.dumps(["one", {"text": "two"}, [3, 4]], indent=1), "a.json", ["one", "two", [3, 4]]),
        ('id,text\n1,"one, ""two"""\n2,three\n', "a.csv", ['one, "two"', "three"]),
        (npy(np.array([4, 5], np.uint16)), "a.NPY", [[4, 5]]),
        (npy(np.array([4, 5], np.uint16)), "a.npy", [[4, 5]]),
        (npy(np.array([[4, 5], [6, 7]])), "a.npy", [[4, 5], [6, 7]]),
    ],
)
def test_documents_of_every_kind_of_file(data, name, expected):
    assert contents(data, name) == expected


def test_a_field_is_taken_by_name():
    assert contents(lines({"text": "no", "body": "yes"}), "a.jsonl", field="body") == ["yes"]


@pytest.mark.parametrize("value", [CHAT, {"messages": CHAT}, {"text": "no", "messages": CHAT}])
def test_conversations_go_through_the_template(value):
    assert contents(lines(value), "a.jsonl", template=TEMPLATE) == ["user: hi\nassistant: hello\n"]


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        ("", "a.txt", "a.txt holds no data"),
        (" \n\f\n", "a.txt", "a.txt holds no data"),
        ("", "a.jsonl", "a.jsonl holds no data"),
        (lines({"text": ""}), "a.jsonl", "holds no data"),
        (b"abc\xff", "a.txt", "not UTF-8 .* at byte 3"),
        (b"[1]\n{", "a.jsonl", "a.jsonl, line 2, is not JSON"),
        ("[" * 100_000, "a.jsonl", "line 1, is not JSON"),
        (lines({"txt": "a", "id": 1}), "a.jsonl", "no field 'messages' or 'text'; its fields are: 'txt', 'id'"),
        (lines({}), "a.jsonl", "its fields are: none"),
        (json.dumps([{"text": "a"}, {"body": "b"}]), "a.json", "item 2, has no field 'messages' or 'text'"),
        ("id,body\n1,a\n", "a.csv", "line 2, has no field 'messages' or 'text'; its fields are: 'id', 'body'"),
        (lines({"text": 4}), "a.jsonl", "is 4; a document is text"),
        (lines([1, "a"]), "a.jsonl", "a document is text, a list of token ids"),
        (lines([True]), "a.jsonl", "a document is text"),
        (lines([-1]), "a.jsonl", "no token id"),
        (lines([10**30]), "a.jsonl", "no token id"),
        (lines(CHAT), "a.jsonl", "no chat template"),
        (b"text", "a.npy", "not a .npy file"),
        (b"", "a.npy", "not a .npy file"),
        (npy(np.array([1.5])), "a.npy", r"holds float64 \[1\]"),
        (npy(np.zeros((1, 1, 1), int)), "a.npy", r"holds int64 \[1, 1, 1\]"),
        (npy(np.array([], int)), "a.npy", "holds no data"),
    ],
)
def test_what_is_no_data_is_refused_by_name(data, name, message):
    with pytest.raises(MisuseError, match=message):
        contents(data, name)


def test_a_field_that_is_missing_is_named():
    with pytest.raises(
        MisuseError, match="line 1, has no field 'body'; its fields are: 'text'; choose one by --field NAME"
    ):
        contents(lines({"text": "a"}), "a.jsonl", field="body")


def test_messages_that_are_none_are_refused_naming_the_line():
    with pytest.raises(MisuseError, match=r"line 1: messages\[0\] has a content"):
        contents(lines([{"role": "user", "content": 3}]), "a.jsonl", template=TEMPLATE)


def test_a_column_of_a_table_is_taken_by_name():
    assert contents("text,body\nno,yes\n", "a.csv", field="body") == ["yes"]


def test_a_tables_messages_are_json():
    cell = json.dumps(CHAT).replace('"', '""')
    assert contents(f'messages\n"{cell}"\n', "a.csv", template=TEMPLATE) == ["user: hi\nassistant: hello\n"]


def test_a_conversation_that_the_template_refuses_is_its_error():
    with pytest.raises(TemplateError, match="who"):
        contents(lines([{"role": "alien", "content": ""}]), "a.jsonl", template=TEMPLATE)
