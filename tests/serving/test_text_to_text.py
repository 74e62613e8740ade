import json
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import urlencode

import pytest

from piston.runtime import load
from piston.runtime.sampling.beam_params import BeamParams

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def model(text_bundle):
    with load(text_bundle) as opened:
        yield opened


@pytest.fixture
def server(live, model):
    return live(None, models=[("texts", model)])


def test_completions_are_greedy_answers_to_each_text_and_count_the_source(server, model):
    texts = ["the sea is calm", "das Meer"]
    status, answer = server.post(PATH, {"model": "texts", "prompt": texts, "max_tokens": 6})
    assert status == 200, answer
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    lengths = [len(model.tokenizer.encode(text)) for text in texts]
    assert answer["usage"]["prompt_tokens"] == sum(lengths) + 2
    assert all(choice["finish_reason"] in {"stop", "length"} for choice in answer["choices"])


def test_a_stream_joins_to_the_whole_answer(server):
    body = {"model": "texts", "prompt": "the sea", "max_tokens": 6}
    whole = server.client.completions.create(**body).choices[0].text
    pieces = server.client.completions.create(**body, stream=True)
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == whole


def test_a_chat_is_refused_with_the_reason(server):
    status, answer = server.post(
        "/v1/chat/completions", {"model": "texts", "messages": [{"role": "user", "content": "hi"}]}
    )
    assert status in {400, 404}
    assert "text2text-generation" in answer["error"]["message"]
    assert "Send requests to /v1/completions or /translate." in answer["error"]["message"]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({"prompt": [[1, 2]]}, "must be a text or a list of texts"),
        ({"prompt": " "}, "is empty"),
        ({"prompt": " ".join(["sea"] * 80)}, "has 81 tokens; the engine reads up to 64"),
        ({"guided_regex": "a*"}, "structured output is for language models"),
        ({"echo": True}, "echo"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(server, field, reason):
    status, answer = server.post(PATH, {"model": "texts", "prompt": "the sea", "max_tokens": 6} | field)
    assert status == 400
    assert reason in answer["error"]["message"]


SETTINGS = {"translation_en_to_de": "to German: ", "translation_de_to_en": "to English: "}


@pytest.fixture
def translator(live, model):
    """A server whose model has prompts of two pairs, as T5's checkpoints have them."""
    settings = dict(model.manifest.settings) | {"prompts": SETTINGS}
    whole = model.manifest
    object.__setattr__(whole, "settings", settings)
    yield live(None, models=[("texts", model)])
    object.__setattr__(whole, "settings", {name: value for name, value in settings.items() if name != "prompts"})


def translate(server, **body):
    return server.post("/translate", {"source": "en", "target": "de"} | body)


def test_a_translation_is_that_of_python_in_the_shape_of_libretranslate(translator, model):
    texts = ["the sea is calm", "wind"]
    expected = [
        one.text for one in model.translate(texts, source="en", target="de", sampling=model.sampling(max_tokens=6))
    ]
    status, answer = translate(translator, q=texts, max_tokens=6)
    assert status == 200, answer
    assert answer["translatedText"] == expected
    status, answer = translate(translator, q=texts[0], max_tokens=6, model="texts", format="text", api_key="")
    assert (status, answer["translatedText"]) == (200, expected[0])
    assert "alternatives" not in answer


def test_a_translation_is_by_the_first_model_that_has_the_pair(live, text_bundle):
    pairs = {"first": {}, "forth": {"translation_en_to_de": "de: "}, "back": {"translation_de_to_en": "en: "}}
    with ExitStack() as stack:
        models = []
        for name, prompts in pairs.items():
            model = stack.enter_context(load(text_bundle))
            model.manifest = replace(model.manifest, settings={**model.manifest.settings, "prompts": prompts})
            models.append((name, model))
        server = live(None, models=models)
        found = [translate(server, q="the sea", source=one, target=two)[1] for one, two in (("en", "de"), ("de", "en"))]
        assert [answer["model"] for answer in found] == ["forth", "back"]
        status, answer = translate(server, q="the sea", model="back")
        assert (status, "has no translation en_to_de" in answer["error"]["message"]) == (400, True)


def test_alternatives_are_found_by_beam_search(translator, model):
    beams = BeamParams(num_beams=4, num_return_sequences=3)
    expected = model.translate(
        ["the sea", "wind"], source="en", target="de", sampling=model.sampling(max_tokens=5), beams=beams
    )
    texts = [completion.text for completion in expected]
    _, answer = translate(translator, q=["the sea", "wind"], alternatives=2, max_tokens=5)
    assert answer["translatedText"] == [texts[0], texts[3]]
    assert answer["alternatives"] == [texts[1:3], texts[4:6]]


def test_a_form_is_read_as_libretranslates_clients_send_it(translator):
    fields = {
        "q": "the sea & wind",
        "source": "en",
        "target": "de",
        "max_tokens": "6",
        "num_beams": "2",
        "early_stopping": "true",
    }
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    status, _, data = translator.request("POST", "/translate", urlencode(fields).encode(), kind)
    assert status == 200, data
    assert (
        json.loads(data)["translatedText"]
        == (
            translate(translator, q="the sea & wind", max_tokens=6, num_beams=2, early_stopping=True)[1][
                "translatedText"
            ]
        )
    )


def test_a_form_that_is_not_utf_8_is_refused(translator):
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    status, _, data = translator.request("POST", "/translate", b"q=wind%FF&source=en&target=de", kind)
    assert (status, json.loads(data)["error"]["message"]) == (400, "The form is not UTF-8 (invalid start byte).")


def test_an_unpaired_surrogate_is_named_with_its_text(translator):
    status, answer = translate(translator, q=["wind", "the \udc00 sea"])
    assert status == 400
    assert answer["error"]["message"].startswith("q[1] has the unpaired surrogate \\udc00 at character 4; ")


def test_json_that_curl_calls_a_form_is_json(translator):
    body = json.dumps({"q": "wind", "source": "en", "target": "de", "max_tokens": 2}).encode()
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert translator.request("POST", "/translate", body, kind)[0] == 200


def test_long_texts_are_cut_between_sentences_as_asked(translator):
    text = ". ".join([" ".join(["sea"] * 30)] * 3)
    assert translate(translator, q=text)[0] == 400
    status, answer = translate(translator, q=[text, "wind"], split_sentences=True, max_tokens=3)
    assert status == 200, answer
    assert len(answer["translatedText"]) == 2


def test_languages_lists_each_with_its_targets(translator):
    _, _, data = translator.request("GET", "/languages")
    assert json.loads(data) == [
        {"code": "de", "name": "de", "targets": ["en"]},
        {"code": "en", "name": "en", "targets": ["de"]},
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"q": "wind", "target": "fr"}, "has no translation en_to_fr; it has: de_to_en, en_to_de"),
        ({"q": "wind", "source": "auto"}, "has no translation auto_to_de"),
        ({"q": []}, "q has no text"),
        ({"q": " ", "split_sentences": True}, "is empty"),
        ({"q": "wind", "format": "html"}, "format is not supported"),
        ({"q": "wind", "api_key": "secret"}, "Authorization: Bearer"),
        ({"q": "wind", "length_penalty": 2}, "length_penalty is for beam search; send num_beams"),
        ({"q": "wind", "alternatives": 4}, "num_beams is 5, but the engine has 4 free slots"),
        ({"q": "wind", "alternatives": -1}, "alternatives"),
    ],
)
def test_a_translation_that_cannot_be_is_refused_with_the_reason(translator, body, reason):
    status, answer = translate(translator, **body)
    assert status == 400
    assert reason in answer["error"]["message"]
