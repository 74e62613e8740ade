"""/v1/decisions through the official client: probabilities are the softmax over the letters, computed by hand."""

import threading
import time

import numpy as np
import openai
import pytest
from tool_template import TEMPLATE
from toy_model import VOCAB_SIZE, history_script, ids_of, toy_model

TEXT = "The package arrived broken."
LETTERS = [ids_of(letter)[0] for letter in "ABCDE"]
DAMAGED = {"type": "predicate", "name": "damaged", "instructions": "Is it broken?"}
DEPARTMENT = {
    "type": "choice",
    "instructions": "Who handles it?",
    "choices": [{"value": "returns"}, {"value": True, "description": "yes"}, {"value": "true"}],
}
SEVERE = {
    "type": "score",
    "name": "severe",
    "instructions": [{"type": "input_text", "text": "How bad?"}],
    "levels": [{"label": "cosmetic"}, {"label": "broken"}],
}


def script(history):
    """Weights 1, 2, 4 ... of the letters, everything else has weight 1."""
    logits = np.zeros(VOCAB_SIZE, np.float32)
    logits[LETTERS] = np.log(2) * np.arange(len(LETTERS))
    return logits


def decide(server, *questions, input_=TEXT, **fields):
    return server.client.decisions.create(model="toy", input=input_, questions=questions, **fields)


def test_each_kind_of_question_has_the_probabilities_of_its_letters(live):
    found = decide(live(script), DAMAGED, DEPARTMENT, SEVERE).answers
    total = VOCAB_SIZE - len(LETTERS) + sum(2**n for n in range(len(LETTERS)))
    damaged, department, severe = found
    assert (damaged.type, damaged.name, damaged.probability) == ("predicate", "damaged", pytest.approx(1 / 3))
    assert (department.type, department.name, department.choice) == ("choice", None, "true")
    assert department.confidence == pytest.approx(4 / total)
    assert [(item.value, item.probability) for item in department.probabilities] == [
        ("returns", pytest.approx(1 / 7)),
        (True, pytest.approx(2 / 7)),
        ("true", pytest.approx(4 / 7)),
    ]
    assert (severe.type, severe.name, severe.score) == ("score", "severe", pytest.approx(2 / 3))
    assert [(item.label, item.value) for item in severe.probabilities] == [("cosmetic", 0), ("broken", 1)]
    assert severe.confidence == pytest.approx(2 / total)


def test_the_input_is_prefilled_once_and_usage_says_so(live):
    many = [DAMAGED | {"name": f"q{n}"} for n in range(6)]
    decision = decide(live(script, num_slots=2, capacity=600), *many, input_="w" * 300)
    assert [answer.name for answer in decision.answers] == [question["name"] for question in many]
    usage = decision.usage
    assert usage.input_tokens_details.cached_tokens > 5 * 300
    assert (
        usage.input_tokens_details.cached_tokens + usage.input_tokens_details.cache_write_tokens == usage.input_tokens
    )
    assert (usage.output_tokens, usage.total_tokens) == (6, usage.input_tokens + 6)


def test_more_questions_than_the_queue_holds_are_answered_in_turns(live):
    server = live(script, num_slots=1, settings={"max_queue_requests": 1})
    assert len(decide(server, *[DAMAGED] * 12).answers) == 12


def test_a_flood_is_429_before_anything_is_run(live):
    gate = threading.Event()

    def held(history):
        assert gate.wait(20)
        return script(history)

    server = live(held, num_slots=1, settings={"max_queue_requests": 0})
    chat = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    asking = threading.Thread(target=server.post, args=("/v1/chat/completions", chat))
    asking.start()
    try:
        until(lambda: server.thread().num_open == 1)
        with pytest.raises(openai.RateLimitError):
            decide(server, DAMAGED)
    finally:
        gate.set()
        asking.join()


def test_a_conversation_is_judged_with_who_said_what(live):
    seen = []

    def recorded(history):
        seen.append(history)
        return script(history)

    server = live(recorded)
    call = {"type": "function_call", "call_id": "c", "name": "order", "arguments": '{"id":4}'}
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "late"}]}
    data = {"type": "input_json", "data": {"id": 4}}
    said = {"role": "user", "content": [{"type": "input_text", "text": "where is it?"}, data]}
    decide(server, DAMAGED, input_=[{"role": "system", "content": "shop"}, said, call, output])
    tokenizer = server.server.served["toy"].model.tokenizer
    prompt = tokenizer.decode(max(seen, key=len), skip_special_tokens=False)
    assert prompt == (
        '<user>system: shop\n\nuser: where is it?\n{"id": 4}\n\ncall of order: {"id":4}\n\noutput: late\n\n'
        "Is it broken?\n\nA. Yes\nB. No\n\nAnswer with the letter of one option alone.<end><bot>"
    )


def test_without_a_chat_template_the_text_asks_for_the_answer(live):
    seen = []

    def recorded(history):
        seen.append(history)
        return script(history)

    model = toy_model(recorded, template=None)
    decide(live(None, models=[("toy", model)]), DAMAGED)
    assert model.tokenizer.decode(max(seen, key=len)).endswith("option alone.\nAnswer:")


def test_letters_that_a_model_writes_behind_a_space_count_as_well(live):
    # In this vocabulary " w" is one token, so the letter w is two tokens; a letter between them is judged by both.
    from piston.serving import decisions

    model = toy_model(history_script())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisions, "LABELS", ["v", "w"])
        letters = decisions._letters(model, 2)
    assert letters == [("v", (ids_of("v")[0],)), ("w", (ids_of("w")[0], ids_of(" w")[0]))]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"questions": []}, "questions"),
        ({"questions": [DAMAGED] * 401}, "questions"),
        ({"questions": [{"type": "guess", "instructions": "x"}]}, "questions[0]"),
        ({"questions": [{"type": "predicate"}]}, "instructions"),
        ({"questions": [DEPARTMENT | {"choices": [{"value": "a"}]}]}, "choices"),
        ({"questions": [DEPARTMENT | {"choices": [{"value": "a"}] * 2}]}, "differ"),
        ({"questions": [DEPARTMENT | {"choices": [{"value": f"c{n}"} for n in range(60)]}]}, "52 letters"),
        ({"questions": [SEVERE | {"levels": [{"label": "a"}] * 2}]}, "differ"),
        ({"questions": [DAMAGED | {"weight": 1}]}, "weight"),
        ({"input": ""}, "input"),
        ({"input": [{"role": "tool", "content": "a"}]}, "role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, "input_image"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "not there"),
        ({"input": [1]}, "input[0]"),
        ({"stream": True}, "stream"),
        ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_what_is_wrong_is_400_with_its_name(live, fields, named):
    body = {"model": "toy", "input": TEXT, "questions": [DAMAGED]} | fields
    status, answer = live(script).post("/v1/decisions", body)
    assert (status, named in answer["error"]["message"]) == (400, True)


def test_an_input_that_is_too_long_is_400_with_the_numbers(live):
    with pytest.raises(openai.BadRequestError, match="the engine holds 100"):
        decide(live(script, capacity=100), DAMAGED, input_="w" * 90)


def test_a_template_that_begins_with_reasoning_is_refused_unless_it_can_be_switched_off(live):
    def template(condition):
        return f"{TEMPLATE}{{% if {condition} %}}<think>{{% endif %}}"

    with pytest.raises(openai.BadRequestError, match="reasoning"):
        decide(live(None, models=[("toy", toy_model(script, template=template("true")))]), DAMAGED)
    model = toy_model(script, template=template("enable_thinking is not defined or enable_thinking"))
    assert decide(live(None, models=[("toy", model)]), DAMAGED).answers[0].probability == pytest.approx(1 / 3)


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
