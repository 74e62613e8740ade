import pytest
from toy_model import CHAT, byte_tokenizer, ids_of

from piston.core.errors import MisuseError
from piston.evaluation.prompts import DEFAULT_PROMPTS, Prompt, chat, read_prompts
from piston.runtime.text.chat_template import ChatTemplate

TEMPLATE = ChatTemplate(CHAT, special_tokens={})


def written(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_the_default_prompts_are_a_dozen_and_all_different():
    shown = [prompt.shown for prompt in DEFAULT_PROMPTS]
    assert len(set(shown)) == len(shown) == 12
    assert any(prompt.messages for prompt in DEFAULT_PROMPTS)


def test_a_text_file_has_a_prompt_on_each_line(tmp_path):
    path = written(tmp_path, "prompts.txt", "one\r\n\n  two\nélan")
    assert read_prompts(path) == (Prompt("one"), Prompt("  two"), Prompt("élan"))


def test_jsonl_has_prompts_with_line_breaks_and_chats(tmp_path):
    lines = ['{"prompt": "a\\nb"}', '"c"', '{"messages": [{"role": "user", "content": "hi"}]}']
    assert read_prompts(written(tmp_path, "prompts.jsonl", "\n".join(lines))) == (
        Prompt("a\nb"),
        Prompt("c"),
        chat("hi"),
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.JSONL", '{"prompt": "one"}\n"two"'),
        ("p.json", '[{"prompt": "one"}, "two"]'),
        ("p.csv", 'id,prompt\n1,one\n2,"two"\n'),
        ("p.tsv", "prompt\tid\none\t1\ntwo\t2\n"),
    ],
)
def test_records_of_any_kind_of_file_hold_prompts(tmp_path, name, text):
    assert read_prompts(written(tmp_path, name, text)) == (Prompt("one"), Prompt("two"))


def test_a_chat_whose_content_is_in_parts_or_missing_is_shown_as_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Prompt(messages=({"role": "user", "content": parts},)).shown == "ab"
    assert Prompt(messages=({"role": "assistant", "content": None, "tool_calls": []},)).shown == ""


def test_control_tokens_in_a_chat_are_text():
    ids = chat("a<end>b").token_ids(byte_tokenizer(), TEMPLATE)
    assert ids == [*ids_of("<user>a<"), *ids_of("end"), *ids_of(">b<end><bot>")]


def test_a_chat_goes_through_the_template_and_a_text_does_not():
    assert chat("hi").token_ids(byte_tokenizer(), TEMPLATE) == ids_of("<user>hi<end><bot>")
    assert Prompt("hi").token_ids(byte_tokenizer(), TEMPLATE) == ids_of("hi")


def test_a_chat_without_a_template_is_its_last_message():
    assert chat("hi").token_ids(byte_tokenizer(), None) == ids_of("hi")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("prompts.txt", "\n \n", "holds no prompt"),
        ("prompts.jsonl", "", "holds no prompt"),
        ("prompts.jsonl", "{", "line 1, is not JSON"),
        ("prompts.jsonl", '"a"\n{"text": "b"}', "line 2, has no field 'prompt' or 'messages'; its fields are: 'text'"),
        ("prompts.csv", "id,text\n1,b\n", "line 2, has no field 'prompt' or 'messages'; its fields are: 'id', 'text'"),
        ("prompts.jsonl", '{"messages": "hi"}', 'line 1: "messages" must be a list'),
        ("prompts.jsonl", '{"messages": [{"role": "user", "content": null}]}', r"line 1: messages\[0\] needs a"),
        ("prompts.jsonl", '""', "line 1: a prompt is"),
        ("prompts.jsonl", '{"messages": []}', "line 1: a prompt is"),
        ("prompts.jsonl", '{"messages": ["hi"]}', r"line 1: messages\[0\] must be a mapping"),
    ],
)
def test_a_file_without_prompts_is_misuse_naming_the_line(tmp_path, name, text, message):
    with pytest.raises(MisuseError, match=message):
        read_prompts(written(tmp_path, name, text))
