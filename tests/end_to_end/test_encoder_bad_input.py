"""What users give encoders by mistake: one line in Python, by command and over HTTP, and no harm to what follows."""

import json
import shutil

import pytest
from encoder_matrix import ROWS
from live_server import serving
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
    ],
)
def test_a_command_says_in_a_line_what_is_wrong_with_a_text(refused, encoder_toys, name, text, stdin, message):
    if name == "answerer" and stdin == LONG:
        pytest.skip("a context of any length is read in windows")
    status, said = refused("run", encoder_toys.bundle(name), *words_of(name, text), stdin=stdin)
    assert (status, message in said) == (2, True), said


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
    with pytest.raises(MisuseError, match="Unicode"):
        ask(models, name, "paris \ud800")
    status, answer = post(server, name, "paris \ud800")  # as JSON escapes it
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


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
