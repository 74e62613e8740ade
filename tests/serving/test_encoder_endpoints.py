"""Endpoints of encoder tasks over sessions whose logits can be told by hand, through the whole server."""

import math
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from embedded import MAX_LENGTH, answerer, classifier, reranker, tagger


@pytest.fixture
def server(live):
    models = {
        "one": classifier(),
        "many": classifier("multi_label", thresholds={"a-ish": 0.7, "b-ish": 0.9}),
        "rank": reranker(),
        "tag": tagger(),
        "answer": answerer(),
    }
    return live(None, models=[*models.items()])


def test_classify_gives_the_best_label_and_all_probabilities(server):
    status, found = server.post("/classify", {"model": "one", "input": ["a a b", ["b", "b"], "c"]})
    assert status == 200
    assert [item["label"] for item in found["data"]] == ["a-ish", "b-ish", "a-ish"]
    share = math.exp(2) / (math.exp(2) + math.exp(1))
    assert found["data"][0]["probs"] == pytest.approx([share, 1 - share])
    assert found["data"][1]["probs"][1] == pytest.approx(math.exp(2) / (math.exp(2) + 1))  # both texts are read
    assert found["usage"]["prompt_tokens"] == 5 + 5 + 3


def test_moderations_flag_what_reaches_the_threshold_of_its_label(server):
    found = server.client.moderations.create(model="many", input=["a b b", "c"])
    flagged, plain = found.results
    assert (flagged.flagged, plain.flagged) == (True, False)
    body = server.post("/v1/moderations", {"model": "many", "input": "a b b"})[1]["results"][0]
    assert body["categories"] == {"a-ish": True, "b-ish": False}  # 0.73 of 0.7, and 0.88 of 0.9
    assert body["category_scores"]["b-ish"] == pytest.approx(1 / (1 + math.exp(-2)))


def test_moderations_of_a_model_of_one_label_are_refused(server):
    with pytest.raises(openai.BadRequestError, match=r"gives a text one label, .* use /classify"):
        server.client.moderations.create(model="one", input="a")


ASKED = [
    {
        "type": "choice",
        "name": "which",
        "instructions": "Which is it?",
        "choices": [{"value": "b-ish"}, {"value": "a-ish"}],
    },
    {"type": "predicate", "name": "b-ish", "instructions": "Is it b?"},
    {"type": "score", "instructions": "How b?", "levels": [{"label": "a-ish"}, {"label": "b-ish"}]},
]


def test_decisions_are_the_probabilities_of_labels(server):
    found = server.client.decisions.create(model="one", input="a a b", questions=ASKED)
    which, is_b, how = found.answers
    share = math.exp(2) / (math.exp(2) + math.exp(1))  # of a, which is there twice
    assert (which.choice, which.confidence) == ("a-ish", pytest.approx(share))
    assert [(item.value, item.probability) for item in which.probabilities] == [
        ("b-ish", pytest.approx(1 - share)),
        ("a-ish", pytest.approx(share)),
    ]
    assert is_b.probability == pytest.approx(1 - share)
    assert how.score == pytest.approx(1 - share)
    assert (found.usage.input_tokens, found.usage.output_tokens) == (5, 0)


def test_a_decision_between_labels_of_which_a_text_may_have_several_is_by_their_share(server):
    message = [{"role": "user", "content": "a b b"}]
    found = server.client.decisions.create(model="many", input=message, questions=ASKED[:2])
    scores = [1 / (1 + math.exp(-count)) for count in (1, 2)]
    which, is_b = found.answers
    assert (which.choice, which.confidence) == ("b-ish", pytest.approx(scores[1]))
    assert which.probabilities[0].probability == pytest.approx(scores[1] / sum(scores))
    assert is_b.probability == pytest.approx(scores[1])


@pytest.mark.parametrize(
    ("model", "question", "message"),
    [
        ("one", ASKED[1] | {"name": "c-ish"}, "'c-ish' is none; its labels are a-ish, b-ish"),
        ("one", {"type": "predicate", "instructions": "Is it?"}, "name of a predicate must be a label of toy"),
        ("one", ASKED[0] | {"choices": [{"value": True}, {"value": "a-ish"}]}, "Each choice and level must be a label"),
        ("value", ASKED[0], "is a regression, which gives a text a value and decides nothing; use /classify"),
    ],
)
def test_what_a_classifier_cannot_decide_is_400_in_a_line(live, model, question, message):
    models = {"one": classifier(), "value": classifier("regression")}
    status, answer = live(None, models=[*models.items()]).post(
        "/v1/decisions", {"model": model, "input": "a", "questions": [question]}
    )
    assert (status, message in answer["error"]["message"]) == (400, True)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_documents_come_best_first_in_the_form_of_jina(server, path):
    body = {"model": "rank", "query": "c", "documents": ["b", {"text": "a a"}, "a"], "top_n": 2}
    status, found = server.post(path, body)
    assert status == 200
    assert [(item["index"], item["document"]["text"]) for item in found["results"]] == [(1, "a a"), (2, "a")]
    assert found["results"][0]["relevance_score"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert found["usage"]["total_tokens"] == 5 + 6 + 5
    bare = server.post(path, body | {"return_documents": False, "raw_scores": True})[1]
    assert bare["results"][0] == {"index": 1, "relevance_score": 2.0}


def test_tags_are_parts_of_the_texts(server):
    found = server.post("/tag", {"model": "tag", "input": ["c a b", "c"]})[1]["data"]
    spans = [(span["label"], span["text"], span["start"], span["end"]) for span in found[0]["spans"]]
    assert spans == [("A", "a", 2, 3), ("B", "b", 4, 5)]
    assert found[1]["spans"] == []
    long = server.post("/tag", {"model": "tag", "input": "c c c c c c a", "stride": 1})[1]["data"][0]["spans"]
    assert [(span["text"], span["start"]) for span in long] == [("a", 12)]


def test_the_answer_is_found_in_any_window(server):
    context = "a b a b a b a b c a b"
    status, found = server.post("/answer", {"model": "answer", "question": "d", "context": context, "stride": 1})
    assert status == 200
    assert (found["text"], found["start"], found["end"]) == ("c", context.index("c"), context.index("c") + 1)
    empty = server.post(
        "/answer", {"model": "answer", "question": "d", "context": "a b", "allow_no_answer": True, "max_answer_len": 1}
    )[1]
    assert (empty["text"], empty["start"], empty["end"]) == ("", 0, 0)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/classify", {"model": "one", "input": []}, "input is empty"),
        ("/classify", {"model": "one", "input": [""]}, r"input\[0\] is empty"),
        ("/classify", {"model": "one", "input": ["a", ["a", "b", "c"]]}, r"input\[1\] must be a text"),
        ("/classify", {"model": "one", "input": "a b c d e f"}, f"has 8 tokens; toy reads up to {MAX_LENGTH}"),
        ("/rerank", {"model": "rank", "query": "a", "documents": [1]}, "documents must be a list of texts"),
        ("/rerank", {"model": "rank", "query": " ", "documents": ["a"]}, r"documents\[0\] with the query is empty"),
        ("/tag", {"model": "tag", "input": "a", "stride": 1, "aggregation": "none"}, "leave one out"),
        ("/answer", {"model": "answer", "question": "a b c d e f", "context": "a b"}, "shorten the question"),
    ],
)
def test_what_cannot_be_answered_is_400_in_a_line(server, path, body, message):
    status, answer = server.post(path, body)
    assert status == 400
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(answer["error"]["message"])


def test_a_long_text_is_cut_only_where_that_is_asked_for(server):
    body = {"model": "one", "input": "a b c d e f", "truncate_prompt_tokens": -1}
    assert server.post("/classify", body)[1]["usage"]["prompt_tokens"] == MAX_LENGTH


def test_a_model_of_another_task_is_named(server):
    status, answer = server.post("/classify", {"model": "rank", "input": "a"})
    assert status in {400, 404}
    assert "rank" in answer["error"]["message"]


def test_requests_at_once_are_answered_each_for_itself(server):
    texts = [" ".join("ab"[n % 2] * (1 + n % 3)) for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda text: server.post("/classify", {"model": "one", "input": text})[1], texts)
    assert [answer["data"][0]["label"] for answer in answers] == [f"{text[0]}-ish" for text in texts]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"model": "one", "input": " "}),
        ("/v1/moderations", {"model": "many", "input": " "}),
        ("/v1/rerank", {"model": "rank", "query": " ", "documents": ["a"]}),
        ("/tag", {"model": "tag", "input": " "}),
        ("/answer", {"model": "answer", "question": " ", "context": "a"}),
    ],
)
def test_a_full_queue_refuses_a_request_before_its_texts_are_encoded(live, path, body):
    models = {"one": classifier(), "many": classifier("multi_label"), "rank": reranker(), "tag": tagger()}
    full = live(None, models=[*models.items(), ("answer", answerer())], settings={"max_queue_requests": 0})
    full.thread(body["model"])._num_open = 1  # a text that is run
    assert full.post(path, body)[0] == 429  # encoding would have refused the empty text with 400
