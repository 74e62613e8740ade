from piston.core.report import code
from piston.core.report.markdown import table, text


def test_text_ends_no_cell_and_is_no_markup():
    assert text("a|b\n<b>&amp;") == "a\\|b &lt;b>&amp;amp;"


def test_code_is_escaped_once():
    assert text(code("int8 >= 95% | <x>")) == "<code>int8 &gt;= 95% \\| &lt;x&gt;</code>"


def test_a_table_has_a_row_for_its_heads_and_one_for_each_row():
    assert list(table(["a", ""], [("1", "2|"), ("3", "4")])) == [
        "| a |  |",
        "| --- | --- |",
        "| 1 | 2\\| |",
        "| 3 | 4 |",
        "",
    ]
