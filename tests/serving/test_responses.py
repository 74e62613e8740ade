import json

import openai
import pytest
from toy_model import history_script, ids_of, replying, toy_model

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>{% endfor %}<bot>{# </think> #}"


def test_a_text_is_answered(live):
    answer = live(replying("hello no")).client.responses.create(model="toy", input="hi", temperature=0)
    assert (answer.output_text, answer.status, answer.object) == ("hello no", "completed", "response")
    assert answer.usage.input_tokens == len(ids_of("<user>hi<end><bot>"))
    assert answer.usage.output_tokens == len(ids_of("hello no")) + 1


def test_instructions_and_messages_are_the_chat(live):
    messages = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "no"}]},
        {"role": "user", "content": "w"},
    ]
    answer = live(replying("hello")).client.responses.create(model="toy", input=messages, instructions="a")
    assert answer.usage.input_tokens == len(ids_of("<system>a<end><user>hi<end><bot>no<end><user>w<end><bot>"))


def test_the_client_s_own_stream_helper_gives_what_the_whole_gives(live):
    server = live(
        None, models=[("toy", toy_model(replying("<think>why\n</think>\nhello no"), num_slots=2, template=TEMPLATE))]
    )
    whole = server.client.responses.create(model="toy", input="hi", temperature=0)
    with server.client.responses.stream(model="toy", input="hi", temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text == "hello no"
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output[0].content[0].text == "why"
    # the last token before the content begins is the line break behind the marker
    before = len(ids_of("<think>why\n</think>\n"))
    assert final.usage.output_tokens_details.reasoning_tokens == before
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == "hello no"


def test_max_output_tokens_leave_it_incomplete(live):
    answer = live(replying("hello no")).client.responses.create(model="toy", input="hi", max_output_tokens=1)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_schema_holds(live):
    form = {"type": "json_schema", "name": "n", "schema": {"enum": ["yes", "no"]}, "strict": True}
    answer = live(history_script()).client.responses.create(model="toy", input="hi", text={"format": form})
    assert json.loads(answer.output_text) in ("yes", "no")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "x"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "function_call_output"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
        ({"reasoning": {"effort": "low"}}, "reasoning_effort"),
        ({"truncation": "auto"}, "truncation"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(live, fields, named):
    with pytest.raises(openai.BadRequestError, match=named):
        live(replying("x")).client.responses.create(**({"model": "toy", "input": "hi"} | fields))
