import dataclasses
import itertools
import re

import numpy as np
import pytest
from scripted_piston import script_engines
from toy_model import (
    CACHE,
    CHAT,
    END,
    VOCAB_SIZE,
    answering,
    byte_tokenizer,
    edit_manifest,
    history_script,
    ids_of,
    manifest_of,
    replying,
    said,
    toy_model,
    write_bundle,
)

from piston.core.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    EmptyPromptError,
    EngineError,
    MisuseError,
    PromptTooLongError,
    TemplateError,
)
from piston.runtime.generate.completion import Completion
from piston.runtime.memory_budget import LEAST_LENGTH, WORKING
from piston.runtime.model import load
from piston.runtime.sampling.params import SamplingParams

SCRIPT = history_script(end=END, every=12)
SHORT = SamplingParams(max_tokens=24)


@pytest.fixture
def bundle(tmp_path):
    write_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_text_is_completed_by_one_completion():
    completion = toy_model(SCRIPT).generate("hello", SHORT)
    assert isinstance(completion, Completion)
    assert completion.token_ids == tuple(said(SCRIPT, "hello", 24))


def test_token_ids_are_completed_as_the_text_they_spell():
    model = toy_model(SCRIPT)
    assert model.generate(ids_of("hello"), SHORT).token_ids == model.generate("hello", SHORT).token_ids


def test_numpy_ids_are_token_ids():
    model = toy_model(SCRIPT)
    assert model.generate(np.array(ids_of("hello")), SHORT).token_ids == model.generate("hello", SHORT).token_ids


def test_a_list_of_prompts_is_completed_by_a_list():
    completions = toy_model(SCRIPT, num_slots=2).generate(["a", ids_of("bc"), "def"], SHORT)
    assert [row.token_ids for row in completions] == [tuple(said(SCRIPT, text, 24)) for text in ("a", "bc", "def")]


def test_a_list_of_one_prompt_is_completed_by_a_list_of_one():
    assert len(toy_model(SCRIPT).generate(["a"], SHORT)) == 1


def test_several_answers_to_one_prompt_are_a_list():
    completions = toy_model(SCRIPT).generate("a", SamplingParams(max_tokens=4, n=3, temperature=1.0, seed=1))
    assert len(completions) == 3


def test_no_prompts_are_no_completions():
    assert toy_model(SCRIPT).generate([]) == []


@pytest.mark.parametrize("prompt", ["", ["a", ""], [[]]])
def test_an_empty_prompt_is_refused_before_any_work(prompt):
    model = toy_model(SCRIPT)
    with pytest.raises(EmptyPromptError):
        model.generate(prompt, SHORT)
    assert model.engine.calls == []


PROMPTS = "it must be a string, a list of integers or a list of strings or lists of integers"


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("generate", {"prompt": 3}, f"prompt is 3; {PROMPTS}"),
        ("generate", {"prompt": None}, f"prompt is None; {PROMPTS}"),
        ("generate", {"prompt": b"hello"}, f"prompt is b'hello'; {PROMPTS}"),
        ("generate", {"prompt": [1.5]}, f"prompt is [1.5]; {PROMPTS}"),
        (
            "generate",
            {"prompt": "a", "sampling": {"top_k": 1}},
            "sampling is {'top_k': 1}; it must be a Sampling",
        ),
        ("generate", {"prompt": "a", "beams": 4}, "beams is 4; it must be a BeamParams or None"),
        ("stream", {"prompt": ["a"]}, "prompt[0] is 'a'; it must be an integer"),
        ("encode", {"prompt": 3}, "prompt is 3; it must be a string or a list of integers"),
        ("chat", {"messages": "hi"}, "messages is 'hi'; it must be a list of dictionaries"),
        ("chat", {"messages": ["hi"]}, "messages[0] is 'hi'; it must be a dictionary"),
        ("conversation", {"system": 3}, "system is 3; it must be a string or None"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_it_takes(method, arguments, message):
    model = toy_model(SCRIPT)
    with pytest.raises(MisuseError, match=re.escape(message)):
        getattr(model, method)(**arguments)
    assert model.engine.calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bundle": 3}, "bundle is 3; it must be a string or a path"),
        ({"bundle": "b", "target": 3}, "target is 3; it must be a string or None"),
        ({"bundle": "b", "max_batch": "2"}, "max_batch is '2'; it must be an integer or None"),
    ],
)
def test_load_names_an_argument_of_another_type(options, message):
    with pytest.raises(MisuseError, match=re.escape(message)):
        load(**options)


@pytest.mark.parametrize("use", ["generate", "stream"])
def test_a_prompt_beyond_the_capacity_is_refused_with_both_numbers_before_any_work(use):
    model = toy_model(SCRIPT, capacity=20)
    with pytest.raises(PromptTooLongError, match=r"together 25, but the engine holds 20"):
        getattr(model, use)("a", SHORT)
    assert model.engine.calls == []


@pytest.mark.parametrize("text", ["hello", "é👍", "a b c"])
def test_pieces_of_a_stream_join_to_the_generated_and_decoded_text(text):
    model = toy_model(SCRIPT)
    completion = model.generate(text, SHORT)
    pieces = list(model.stream(text, SHORT))
    assert "".join(pieces) == completion.text == byte_tokenizer().decode(completion.token_ids)
    assert all(pieces)


def test_pieces_of_a_stream_begin_with_the_echo():
    model = toy_model(SCRIPT)
    sampling = dataclasses.replace(SHORT, echo=True)
    assert "".join(model.stream("hello", sampling)) == model.generate("hello", sampling).text


def test_a_stream_that_has_ended_has_the_completion():
    model = toy_model(SCRIPT)
    stream = model.stream("hello", SHORT)
    list(stream)
    assert stream.completion.token_ids == model.generate("hello", SHORT).token_ids
    assert stream.completion.finish_reason == "stop"


def test_a_stream_under_way_has_a_completion_of_what_was_said():
    model = toy_model(answering((ids_of("Q"), ids_of("hello, world"))))
    stream = model.stream("Q", SHORT)
    pieces = "".join(itertools.islice(stream, 3))
    assert stream.completion.text == pieces
    assert stream.completion.finish_reason is None


def test_a_stream_closed_early_frees_its_slot_and_ends():
    model = toy_model(SCRIPT)
    stream = model.stream("hello", SHORT)
    next(stream)
    assert model.engine.cache.num_free == 0
    stream.close()
    assert model.engine.cache.num_free == 1
    assert list(stream) == []


def test_a_stream_has_one_answer():
    with pytest.raises(MisuseError, match="n is 2"):
        toy_model(SCRIPT).stream("a", SamplingParams(n=2, temperature=1.0))


def test_streams_may_be_read_in_turns():
    model = toy_model(SCRIPT, num_slots=2)
    texts = ["", ""]
    streams = [model.stream("hello", SHORT), model.stream("no", SHORT)]
    for pair in itertools.zip_longest(*streams, fillvalue=""):
        texts = [text + piece for text, piece in zip(texts, pair, strict=True)]
    assert texts == [model.generate(text, SHORT).text for text in ("hello", "no")]


def test_generation_while_every_slot_is_held_is_refused():
    model = toy_model(replying("hi"))
    with model.conversation(), pytest.raises(MisuseError, match="slots are taken"):
        model.generate("a", SHORT)


def test_chat_answers_the_rendered_messages():
    model = toy_model(replying("hello you"))
    completion = model.chat([{"role": "user", "content": "hi"}], SHORT)
    assert completion.text == "hello you"
    assert completion.num_prompt_tokens == len(ids_of("<user>hi<end><bot>"))


def test_chat_without_a_template_names_the_model():
    with pytest.raises(TemplateError, match="toy has no chat template"):
        toy_model(SCRIPT, template=None).chat([{"role": "user", "content": "hi"}])


def test_default_sampling_is_what_the_manifest_recommends():
    model = toy_model(SCRIPT, manifest=manifest_of(generation={"temperature": 0.6, "top_p": 0.9}))
    assert model.default_sampling == SamplingParams(temperature=0.6, top_p=0.9)


def test_default_sampling_leaves_out_the_limit_that_counts_the_prompt():
    model = toy_model(SCRIPT, manifest=manifest_of(generation={"max_length": 50, "suppress_tokens": [3]}))
    assert model.default_sampling == SamplingParams(suppress_tokens=(3,))


def test_default_sampling_passes_over_suppressed_tokens_that_the_model_does_not_have():
    """As transformers does: it compares every token of the vocabulary with the list."""
    generation = {"suppress_tokens": [3, VOCAB_SIZE, 10**6], "begin_suppress_tokens": [VOCAB_SIZE]}
    model = toy_model(SCRIPT, manifest=manifest_of(generation=generation))
    assert model.default_sampling == SamplingParams(suppress_tokens=(3,))
    assert model.generate("a", model.default_sampling).token_ids


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, (VOCAB_SIZE,)) for name in ("stop_token_ids", "suppress_tokens", "begin_suppress_tokens")),
        ("logit_bias", {VOCAB_SIZE: 1.0}),
        ("forced_bos_token_id", VOCAB_SIZE),
        ("forced_eos_token_id", VOCAB_SIZE),
    ],
)
def test_a_token_that_the_model_does_not_have_is_refused_before_any_work(name, value):
    model = toy_model(SCRIPT)
    with pytest.raises(MisuseError, match=f"{name} names token {VOCAB_SIZE}; the model's tokens are 0 to"):
        model.stream("a", SamplingParams(**{name: value}))
    assert model.engine.cache.num_free == 1


def test_default_sampling_is_greedy_where_nothing_is_recommended():
    assert toy_model(SCRIPT).default_sampling == SamplingParams()


def test_leaving_the_context_closes_the_engine():
    with toy_model(SCRIPT) as model:
        assert not model.engine.is_closed
    assert model.engine.is_closed


def test_greedy_is_the_default():
    model = toy_model(SCRIPT)
    assert model.generate("hello").token_ids == tuple(said(SCRIPT, "hello", 256))


def test_load_without_a_bundle_says_what_to_give(tmp_path):
    with pytest.raises(BundleNotFoundError, match="piston build"):
        load(tmp_path)


def test_load_of_a_model_directory_says_how_to_build(tmp_path):
    write_bundle(tmp_path, kind="model", engines=())
    with pytest.raises(BundleError, match=r"is a model directory, not a bundle; run `piston build"):
        load(tmp_path)


def test_load_of_an_unknown_target_names_those_that_are_there(bundle):
    with pytest.raises(BundleError, match="no engine for tensorrt; it has: ort-cpu"):
        load(bundle, target="tensorrt")


def test_load_of_a_target_without_backend_is_refused(bundle):
    edit_manifest(bundle, lambda data: data["engines"][0].update(target="quantum"))
    with pytest.raises(BundleError, match="no backend for quantum"):
        load(bundle)


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"max_batch": -1}, {"max_length": 0}])
def test_load_refuses_sizes_below_one(bundle, options):
    with pytest.raises(MisuseError, match="must be at least 1"):
        load(bundle, **options)


def test_load_beyond_the_model_tells_both_numbers(bundle):
    with pytest.raises(MisuseError, match=r"max_length is 97.*96 positions"):
        load(bundle, max_length=97)


@pytest.mark.parametrize("name", ["max_batch", "max_length"])
@pytest.mark.parametrize("value", ["many", None, [1]])
def test_load_refuses_a_manifest_whose_build_sizes_are_no_numbers(bundle, name, value):
    edit_manifest(bundle, lambda data: data["engines"][0]["requested"].update({name: value}))
    with pytest.raises(BundleCorruptError, match=name):
        load(bundle)


def test_load_of_a_broken_engine_is_an_engine_error(bundle):
    pytest.importorskip("onnxruntime")
    with pytest.raises(EngineError, match=r"loading .*model\.onnx"):
        load(bundle)


@pytest.mark.parametrize("text", ["{% for", b"\xff\xfe"])
def test_a_broken_template_is_one_of_our_errors_before_a_chat_runs(tmp_path, text, monkeypatch):
    write_bundle(tmp_path, template=CHAT)
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    edit_manifest(tmp_path, lambda data: data["files"].pop("chat_template.jinja"))
    script_engines(replying("a"), monkeypatch.setattr)
    with pytest.raises((TemplateError, BundleCorruptError), match="template"), load(tmp_path) as model:
        model.chat([{"role": "user", "content": "hi"}])


def test_in_a_container_the_cache_is_made_to_fit_and_the_model_says_so(tmp_path, monkeypatch):
    write_bundle(tmp_path)
    script_engines(replying("a"), monkeypatch.setattr)
    room = LEAST_LENGTH * CACHE.bytes_per_token
    weights = sum(path.stat().st_size for path in (tmp_path / "ort-cpu").iterdir())
    monkeypatch.setattr("piston.runtime.tasks.text_generation.container_memory", lambda: WORKING + weights + room)
    with load(tmp_path) as model:
        assert (model.engine.cache.num_slots, model.engine.cache.capacity) == (1, LEAST_LENGTH)
        assert any("max_length is 64 instead of 96" in remark for remark in model.remarks)
