import json

import pytest

from piston.core.errors import MisuseError
from piston.evaluation.examples import Example, read_audio_list, read_texts


def test_each_line_of_a_text_is_a_source(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    assert read_texts(tmp_path / "a.txt") == [Example(source="one"), Example(source="two")]


def test_records_have_sources_targets_and_languages(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "\n".join(
            map(
                json.dumps,
                [
                    {"text": "one", "summary": "1"},
                    {"source": "two", "source_language": "en", "target_language": "de"},
                ],
            )
        )
    )
    assert read_texts(path) == [
        Example(source="one", target="1"),
        Example(source="two", languages=("en", "de")),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "", "holds no text"),
        ("a.jsonl", '{"body": "x"}', "has no field 'source'"),
        ("a.jsonl", '{"text": 3}', "must be a text"),
        ("a.jsonl", '{"text": "a", "source_language": "en"}', "names one language"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(MisuseError, match=said):
        read_texts(tmp_path / name)


def test_audio_files_are_named_one_by_one_by_lines_by_records_or_by_a_table_without_a_header(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
    a, b = Example(source=tmp_path / "a.wav"), Example(source=tmp_path / "b.wav")
    (tmp_path / "l.txt").write_text("a.wav\nb.wav\n")
    (tmp_path / "l.jsonl").write_text('{"audio": "a.wav", "text": "Hi.", "language": "en"}\n{"audio": "b.wav"}')
    (tmp_path / "l.tsv").write_text("a.wav\tHi.\nb.wav\tBye.\n")
    (tmp_path / "h.csv").write_text("path,transcript\na.wav,Hi.\n")
    assert read_audio_list(tmp_path / "a.wav") == [a]
    assert read_audio_list(tmp_path / "l.txt") == [a, b]
    assert read_audio_list(tmp_path / "l.jsonl") == [Example(source=a.source, target="Hi.", languages=("en",)), b]
    assert read_audio_list(tmp_path / "l.tsv") == [
        Example(source=a.source, target="Hi."),
        Example(source=b.source, target="Bye."),
    ]
    assert read_audio_list(tmp_path / "h.csv") == [Example(source=a.source, target="Hi.")]


def test_an_audio_file_that_is_not_there_is_named(tmp_path):
    (tmp_path / "l.txt").write_text("gone.wav")
    with pytest.raises(MisuseError, match=r"names .*gone\.wav, which is no file"):
        read_audio_list(tmp_path / "l.txt")


def test_only_line_feeds_end_a_source(tmp_path):
    (tmp_path / "a.txt").write_text("one\u2028still one\x0b\x1cand still\r\ntwo\n", encoding="utf-8", newline="")
    assert [item.source for item in read_texts(tmp_path / "a.txt")] == ["one\u2028still one\x0b\x1cand still", "two"]


def test_lines_of_a_table_without_a_header_are_counted_as_in_the_file(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "l.tsv").write_text("a.wav\tHi.\na.wav\t \n")
    with pytest.raises(MisuseError, match=r"line 2: text must be a text"):
        read_audio_list(tmp_path / "l.tsv")
