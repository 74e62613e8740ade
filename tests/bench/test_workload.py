import numpy as np
import pytest
from toy_model import VOCAB_SIZE, byte_tokenizer, ids_of

from piston.bench.workload import Setting, Work, settings_of, work_of_file
from piston.core.errors import MisuseError


def test_settings_are_the_cross_product_in_the_order_given_without_repetitions():
    found = settings_of([1, 4], [128, 32, 128], [8])
    assert found == [Setting(1, 128, 8), Setting(1, 32, 8), Setting(4, 128, 8), Setting(4, 32, 8)]


@pytest.mark.parametrize("numbers", [([0], [1], [1]), ([1], [-3], [1]), ([1], [1], [])])
def test_numbers_below_one_are_refused(numbers):
    with pytest.raises(MisuseError, match="at least 1"):
        settings_of(*numbers)


def test_random_prompts_have_the_shape_asked_for_and_known_ids():
    rows = np.array(Work(Setting(3, 17, 1), vocab_size=200).rows(0))
    assert rows.shape == (3, 17)
    assert rows.min() >= 0
    assert rows.max() < 200


def test_random_prompts_are_the_same_for_every_system_and_differ_from_round_to_round_and_row_to_row():
    work = Work(Setting(2, 64, 1), vocab_size=5000)
    assert work.rows(3) == Work(Setting(2, 64, 1), vocab_size=5000).rows(3)
    rows = [tuple(row) for index in range(5) for row in work.rows(index)]
    assert len(set(rows)) == len(rows)


def test_prompts_of_a_file_follow_one_another_and_begin_again(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("abc\n\ndefgh\nij\n", encoding="utf-8")
    (work,) = work_of_file(path, byte_tokenizer(), VOCAB_SIZE, [1], [4])
    assert work.setting.prompt_len == len(ids_of("defgh"))
    assert [work.rows(index) for index in range(4)] == [[ids_of(text)] for text in ("abc", "defgh", "ij", "abc")]


def test_rows_of_one_batch_are_cut_to_the_shortest(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "abcd"}\n{"text": "xy"}\n', encoding="utf-8")
    (work,) = work_of_file(path, byte_tokenizer(), VOCAB_SIZE, [2], [4])
    assert work.rows(0) == [ids_of("abcd")[: len(ids_of("xy"))], ids_of("xy")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.JSONL", '{"prompt": "ab\u2028c"}\n'),
        ("p.json", '[{"prompt": "ab\u2028c"}]'),
        ("p.csv", "id,prompt\n1,ab\u2028c\n"),
        ("p.txt", "ab\u2028c\r\n"),
    ],
)
def test_prompts_come_from_any_kind_of_file(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    (work,) = work_of_file(tmp_path / name, byte_tokenizer(), VOCAB_SIZE, [1], [4])
    assert work.rows(0) == [ids_of("ab\u2028c")]


def test_another_file_is_another_setting(tmp_path):
    found = []
    for text in ("one", "two"):
        (tmp_path / text).write_text(text, encoding="utf-8")
        found += work_of_file(tmp_path / text, byte_tokenizer(), VOCAB_SIZE, [1], [4])
    assert found[0].setting != found[1].setting


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"prompt": 3}', "line 1"),
        ("a.jsonl", b'{"prompt": "a"}\n[1]', "line 2"),
        ("a.jsonl", b"{", "line 1"),
        ("a.csv", b"id,body\n1,a\n", "its fields are: 'id', 'body'"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MisuseError, match=told):
        work_of_file(tmp_path / name, byte_tokenizer(), VOCAB_SIZE, [1], [1])


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(MisuseError, match="Cannot read"):
        work_of_file(tmp_path / "none", byte_tokenizer(), VOCAB_SIZE, [1], [1])
