import bz2
import gzip
import io
import lzma
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piston.core.data_files import as_text, field_of, read_bytes, read_text, records_of
from piston.core.errors import MisuseError


def values(text, path):
    records = records_of(text, path)
    return None if records is None else [value for _, value in records]


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), "text")  # of a fixed date: the bytes are in the name of the test
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", '["a"]', None),
        ("a", "", None),
        ("a.jsonl", '"a"\n\n{"text": "b"}\n', ["a", {"text": "b"}]),
        ("A.JSONL", '"a"\r\n"b"\r\n', ["a", "b"]),
        ("a.ndjson", '"a\u2028b"', ["a\u2028b"]),
        ("a.json", '["a",\n {"text": "b"}]', ["a", {"text": "b"}]),
        ("a.Json", '{"text": "b"}', [{"text": "b"}]),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
        ("a.json", "", []),
        ("a.csv", 'id,text\r\n1,"two\r\nlines, ""so"""\r\n', [{"id": "1", "text": 'two\r\nlines, "so"'}]),
        ("a.TSV", "text\tid\na, b\t1\n", [{"text": "a, b", "id": "1"}]),
        ("a.csv", 'messages\n"[{""role"": ""user""}]"\n', [{"messages": [{"role": "user"}]}]),
        ("a.csv", "text\n" + "x" * 200_000 + "\n", [{"text": "x" * 200_000}]),
        ("a.csv", "", []),
    ],
)
def test_records_are_read_as_the_suffix_says(tmp_path, name, text, expected):
    assert values(text, tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '"a"\n{', "a.jsonl, line 2, is not JSON"),
        ("a.json", "[1, 2", "a.json is not JSON"),
        ("a.json", "[" * 100_000, "a.json is not JSON"),
        ("a.json", '"a"\n{', "a.json, line 2, is not JSON"),
        ("a.csv", "id,text\n1,a,b\n", "line 2, has a different number of columns than the first row, 2"),
        ("a.csv", "id,text\n1\n", "line 2, has a different number of columns than the first row, 2"),
        ("a.csv", 'text\n"a" b\n', "not a table with ',' between columns"),
        ("a.csv", "messages\nhi\n", "line 2, is not JSON"),
        ("a.jsonl", '"a"\n{"text": "b \\ud800"}', r"a.jsonl, line 2: text has the unpaired surrogate \\ud800 at char"),
        ("a.json", '[{"text": ["\\udfff"]}]', r"a.json, item 1: text\[0\] has the unpaired surrogate \\udfff at char"),
    ],
)
def test_what_is_not_as_the_suffix_says_is_refused_naming_the_line(tmp_path, name, text, message):
    with pytest.raises(MisuseError, match=message):
        records_of(text, tmp_path / name)


def test_the_first_of_the_named_fields_is_taken_and_the_ones_there_are_named():
    assert field_of({"text": 1, "prompt": 2}, ("prompt", "text"), "here") == 2
    assert field_of("a", ("text",), "here") == "a"
    with pytest.raises(
        MisuseError, match="here, has no field 'prompt' or 'text'; its fields are: 'id;text'; rename one of them"
    ):
        field_of({"id;text": "1;a"}, ("prompt", "text"), "here")
    with pytest.raises(MisuseError, match='here: "messages" must be a list'):
        field_of({"messages": "hi"}, ("messages",), "here")


def test_text_keeps_its_line_ends_and_loses_its_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(tmp_path / "a") == "one\r\ntwo\rthree\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text".encode("utf-16"), "data.txt is not UTF-8 but UTF-16 or UTF-32; convert it"),
        ("text".encode("utf-32"), "is not UTF-8 but UTF-16 or UTF-32"),
        ("text".encode("utf-16-le"), "character 1 is NUL, as in UTF-16 and binary files"),
        ("Gr\u00fc\u00dfe".encode("latin-1"), "is not UTF-8 .* at byte 2"),
        (gzip.compress(b"text", mtime=0), "is not UTF-8 text but gzip; unpack it first"),
        (bz2.compress(b"text" * 99), "but bzip2"),
        (lzma.compress(b"text"), "but xz"),
        (zipped(), "but a zip archive"),
        (b"PAR1\x15\x04\x00\xff", "but Parquet; convert it to JSON lines"),
        (npy(), "but a NumPy array"),
    ],
)
def test_what_is_no_text_is_refused_by_what_it_is(data, message):
    with pytest.raises(MisuseError, match=message):
        as_text(data, "data.txt")


def test_a_text_that_only_begins_like_a_binary_file_is_text():
    assert as_text(b"PAR1 and BZh are names", "a") == "PAR1 and BZh are names"


@settings(deadline=None)
@given(
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"]),
    st.text() | st.text('[]{}",:\t\n\r1a', max_size=30),
)
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory, name, text):
    path = tmp_path_factory.getbasetemp() / name
    try:
        records_of(text, path)
    except MisuseError as problem:
        assert "\n" not in str(problem)  # noqa: PT017  either outcome is right


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(MisuseError, match="Cannot read"):
        read_bytes(tmp_path / name)
