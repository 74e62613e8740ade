"""What users give encoders by mistake: one line in Python, by command and over HTTP, and no harm to what follows."""

import json
import re
import shutil

import numpy as np
import pytest
from columns import Column
from live_server import serving
from task_matrix import ROWS
from toy_model import edit_manifest

from piston.core.errors import BundleCorruptError, MisuseError, PromptTooLongError
from piston.runtime import load
from piston.serving.settings import Settings

TASKS = {"single": "classify", "tagger": "tag", "embedder": "embed", "reranker": "rerank", "answerer": "answer"}
OPTIONS = {
    "single": ("--text",),
    "tagger": ("--text",),
    "embedder": ("--text",),
    "reranker": ("--query", "--document"),
    "answerer": ("--question", "--context"),
}
LONG = "in paris " * 2_500  # of more tokens than any toy reads


def words_of(name, text):
    """The options of the task with `text` as the last of its inputs."""
    first, *second = OPTIONS[name]
    return (first, "in paris?", second[0], text) if second else (first, "hello", first, text)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("text", "stdin", "message"),
    [
        ("", "", "is empty; leave it out"),
        ("paris \udc80", "", "is not UTF-8"),  # bytes of a command line that are none
        ("-", LONG, " tokens"),
        ("-", b"paris \x80", "UTF-8"),
        ("-", "paris\0", "NUL"),
        ("-", "", "Standard input has no text"),
        ("-", "\ufeff\n \n", "Standard input has no text"),
    ],
)
def test_a_command_says_in_a_line_what_is_wrong_with_a_text(refused, encoder_toys, name, text, stdin, message):
    if name == "answerer" and stdin == LONG:
        pytest.skip("a context of any length is read in windows")
    status, said = refused("run", encoder_toys.bundle(name), *words_of(name, text), stdin=stdin)
    assert (status, message in said) == (2, True), said


def test_a_context_file_without_text_is_refused(refused, encoder_toys, tmp_path):
    (tmp_path / "context").write_text("\n")
    words = ("--question", "in paris?", "--context-file", tmp_path / "context")
    status, said = refused("run", encoder_toys.bundle("answerer"), *words)
    assert (status, said.startswith(f"{tmp_path / 'context'} has no text")) == (2, True)


@pytest.mark.parametrize("name", TASKS)
def test_a_command_for_another_task_says_which_the_bundle_has(refused, encoder_toys, name):
    status, said = refused("run", encoder_toys.bundle(name), "--audio", "x.wav")
    assert (status, f"is for {ROWS[name].task}" in said) == (2, True)


def test_ten_thousand_texts_are_answered_in_order_by_command(piston, encoder_toys):
    texts = [f"{'ab'[index % 2]} {'c ' * (index % 5)}" for index in range(10_000)]
    with load(encoder_toys.bundle("single")) as model:
        expected = [model.labels[index] for index in model.scores(texts[:10]).argmax(axis=1)]
    words = ("run", encoder_toys.bundle("single"), "--text", "-", "--top-k", "1", "--json")
    result = piston(*words, stdin="\n".join(texts))
    found = json.loads(result.out)["results"]
    assert (result.status, len(found)) == (0, 10_000)
    assert [scores[0]["label"] for scores in found] == expected * 1000


@pytest.fixture(scope="module")
def served(encoder_toys):
    """One server with a toy of each task: (the models by name, the server)."""
    models = {name: load(encoder_toys.bundle(name)) for name in TASKS}
    try:
        with serving([*models.items()], Settings()) as server:
            yield models, server
    finally:
        for model in models.values():
            model.close()


def ask(models, name, text):
    """The call of the task with `text` as the last of its inputs."""
    if name == "answerer":
        return models[name].answer("in paris?", text)
    if name == "reranker":
        return models[name].rerank("in paris?", ["hello", text])
    return getattr(models[name], TASKS[name])(["hello", text])


def post(server, name, text):
    """The request of the task with `text` as the last of its inputs."""
    row = ROWS[name]
    body = {
        "answerer": {"question": "in paris?", "context": text},
        "reranker": {"query": "in paris?", "documents": ["hello", text]},
    }.get(name, {"input": ["hello", text]})
    return server.post(row.path, {"model": name, **body})


@pytest.mark.parametrize("text", ["", " \n\t"])
@pytest.mark.parametrize("name", TASKS)
def test_an_empty_text_is_refused(served, name, text):
    models, server = served
    with pytest.raises(MisuseError, match="is empty; leave it out"):
        ask(models, name, text)
    status, answer = post(server, name, text)
    assert (status, "is empty; leave it out" in answer["error"]["message"]) == (400, True)


@pytest.mark.parametrize("text", ["ßßß", "🫠🫠", "\u200b", "a\u0301\u202e"])
@pytest.mark.parametrize("name", TASKS)
def test_unknown_and_invisible_characters_are_a_text(served, name, text):
    models, server = served
    ask(models, name, text)
    assert post(server, name, text)[0] == 200


@pytest.mark.parametrize("name", TASKS)
def test_an_unpaired_surrogate_is_refused(served, name):
    models, server = served
    half = r"has the unpaired surrogate \ud800 at character 6; it must be a string of Unicode characters."
    with pytest.raises(MisuseError, match=re.escape(half)):
        ask(models, name, "paris \ud800")
    status, answer = post(server, name, "paris \ud800")  # as JSON escapes it
    place = {"answerer": "context", "reranker": "documents[1]"}.get(name, "input[1]")
    assert (status, answer["error"]["message"]) == (400, f"{place} {half}")
    assert (answer["error"]["type"], answer["error"]["param"]) == ("invalid_request_error", place)


LIST = "must be a list of strings"


@pytest.mark.parametrize(
    ("name", "method", "arguments", "message"),
    [
        ("embedder", "embed", (3,), f"texts is 3; it {LIST}"),
        ("embedder", "embed", ("paris",), f"texts is 'paris'; it {LIST}; for one text, give [text]"),
        ("embedder", "embed", (["a"], {"dimensions": "3"}), "dimensions is '3'; it must be an integer or None"),
        ("embedder", "embed", (["a"], {"truncate": "no"}), "truncate is 'no'; it must be True or False"),
        ("single", "classify", (3,), "texts is 3; it must be a list of strings or tuples of two strings"),
        ("single", "classify", ("paris",), "texts is 'paris'; it must be a list"),
        ("single", "classify", ([["a", "b"]],), "must be a string or a tuple of two strings"),
        ("single", "classify", (["a"], {"top_k": "3"}), "top_k is '3'; it must be an integer or None"),
        ("single", "scores", ({"a": 1},), "texts is {'a': 1}; it must be a list"),
        ("tagger", "tag", (None,), f"texts is None; it {LIST}"),
        ("tagger", "tag", ("paris",), f"texts is 'paris'; it {LIST}; for one text, give [text]"),
        (
            "tagger",
            "tag",
            (["a"], {"aggregation": "best"}),
            "aggregation is 'best'; it must be one of 'none', ",
        ),
        ("tagger", "tag", (["a"], {"ignore_labels": "O"}), f"ignore_labels is 'O'; it {LIST}"),
        ("tagger", "tag", (["a"], {"stride": 1.5}), "stride is 1.5; it must be an integer or None"),
        ("answerer", "answer", (3, "a"), "question is 3; it must be a string"),
        ("answerer", "answer", ("a", ["b"]), r"context is ['b']; it must be a string"),
        ("answerer", "answer", ("a", "b", {"max_answer_len": None}), "max_answer_len is None; it must be an integer"),
        ("answerer", "answer_all", (["ab"],), "pairs[0] is 'ab'; it must be a tuple of two strings"),
        ("reranker", "rerank", (3, ["a"]), "query is 3; it must be a string"),
        ("reranker", "rerank", ("a", "bc"), f"documents is 'bc'; it {LIST}; for one text, give [text]"),
        ("reranker", "rerank", ("a", ["b"], {"top_n": "1"}), "top_n is '1'; it must be an integer or None"),
        ("reranker", "scores", ("a", 3), f"documents is 3; it {LIST}"),
        ("reranker", "pair_scores", (["ab"],), "pairs[0] is 'ab'; it must be a tuple of two strings"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_it_takes(served, name, method, arguments, message):
    models, _ = served
    *given, last = arguments
    options = last if method != "scores" and isinstance(last, dict) else {}
    with pytest.raises(MisuseError, match=re.escape(message)):
        getattr(models[name], method)(*given, *([] if options else [last]), **options)


def test_a_column_of_a_table_is_read_in_its_order_whatever_its_labels(served):
    models, _ = served
    shuffled = Column({1: "hello", 0: "paris is far"})
    texts = list(shuffled)
    np.testing.assert_array_equal(models["single"].scores(shuffled), models["single"].scores(texts))
    assert [models["single"].classify(shuffled), models["tagger"].tag(shuffled)] == [
        models["single"].classify(texts),
        models["tagger"].tag(texts),
    ]
    np.testing.assert_array_equal(models["embedder"].embed(shuffled), models["embedder"].embed(np.array(texts)))


@pytest.mark.parametrize("name", [name for name in TASKS if name != "answerer"])  # which reads any context in windows
def test_a_very_long_text_is_refused_or_cut(served, name):
    models, server = served
    with pytest.raises(PromptTooLongError, match=r"has [\d,]+ tokens"):
        ask(models, name, LONG)
    status, answer = post(server, name, LONG)
    assert (status, "tokens" in answer["error"]["message"]) == (400, True)
    row, body = ROWS[name], {"truncate_prompt_tokens": -1}
    key = "documents" if name == "reranker" else "input"
    assert server.post(row.path, {"model": name, **row.body, **body, key: [LONG]})[0] == 200


@pytest.mark.parametrize("name", TASKS)
def test_a_model_of_another_task_is_named_with_what_it_does(served, name):
    _, server = served
    other = next(each for each in TASKS if each != name)
    status, answer = server.post(ROWS[other].path, {"model": name, **ROWS[other].body})
    assert status in {400, 404}
    assert ROWS[name].path in answer["error"]["message"]


@pytest.mark.parametrize("name", [name for name in TASKS if name != "answerer"])
def test_more_texts_than_the_server_queues_are_refused_before_they_are_encoded(served, name):
    _, server = served
    key = "documents" if name == "reranker" else "input"
    # The first would be refused for itself, if it were encoded.
    status, answer = server.post(ROWS[name].path, {"model": name, **ROWS[name].body, key: ["", *["a"] * 9_999]})
    assert (status, "10,000 rows" in answer["error"]["message"]) == (400, True)
    assert post(server, name, "hello")[0] == 200


def test_a_context_without_an_answer_gives_the_empty_one_where_that_is_asked_for(served):
    models, server = served
    row = ROWS["answerer"]
    plain = models["answerer"].answer("in paris?", "ßßß")
    assert (plain.text, plain.start, plain.end) == ("ßßß", 0, 3)
    status, found = server.post(row.path, {"model": "answerer", **row.body, "context": "ßßß", "allow_no_answer": True})
    assert status == 200
    is_none = found["no_answer_score"] >= plain.score
    assert (found["text"], found["end"]) == (("", 0) if is_none else ("ßßß", 3))


@pytest.mark.parametrize("name", ["single", "tagger"])
@pytest.mark.parametrize("labels", [["bad"], None, ["bad", 1, "good"], "bad"])
def test_a_bundle_whose_labels_are_not_those_of_its_logits_is_refused(encoder_toys, tmp_path, name, labels):
    bundle = shutil.copytree(encoder_toys.bundle(name), tmp_path / "bundle")
    edit_manifest(bundle, lambda manifest: manifest["settings"].update(labels=labels))
    with pytest.raises(BundleCorruptError, match=r"labels, and its graph has \d logits; make it again"):
        load(bundle)
