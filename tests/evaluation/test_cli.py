import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from evaluated import TEXT, other_script
from toy_model import END, VOCAB_SIZE, answering, edit_manifest, history_script, ids_of, write_bundle

from piston.runtime.backends.scripted import ScriptedEngine

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
SCHEMA = json.loads((SCHEMAS / "eval.json").read_text(encoding="utf-8"))
WINDOW = ("--window", "32", "--stride", "16")
HISTORY, OTHER = history_script(), other_script()


def uniform(history):
    return np.zeros(VOCAB_SIZE, np.float32)


@pytest.fixture
def two(evaluated, bundle, reference, text):
    """Both models on the text, with whatever is added."""

    def run(*words, bundle_script=OTHER, reference_script=HISTORY):
        words = (bundle, "--reference", reference, "--data", text, *WINDOW, "--answer-tokens", "8", *words)
        return evaluated(*words, bundle=bundle_script, reference=reference_script)

    return run


@pytest.fixture
def json_of(two):
    def run(*words, **scripts):
        status, out, _ = two("--json", *words, **scripts)
        found = json.loads(out)
        jsonschema.validate(found, SCHEMA)
        return status, found

    return run


@pytest.mark.parametrize("name", sorted(path.name for path in SCHEMAS.iterdir()))
def test_every_schema_is_a_schema(name):
    jsonschema.Draft202012Validator.check_schema(json.loads((SCHEMAS / name).read_text(encoding="utf-8")))


def test_one_model_has_a_perplexity_and_nothing_to_compare(evaluated, bundle, text):
    status, out, _ = evaluated(bundle, "--data", text, *WINDOW, "--json", bundle=uniform)
    found = json.loads(out)
    jsonschema.validate(found, SCHEMA)
    assert status == 0
    assert found["candidate"]["perplexity"]["value"] == pytest.approx(VOCAB_SIZE)
    assert (found["reference"], found["agreement"], found["answers"], found["gates"]) == (None, None, None, [])


def test_bits_per_byte_are_of_the_bytes_of_the_scored_tokens(evaluated, bundle, text):
    found = json.loads(evaluated(bundle, "--data", text, *WINDOW, "--json", bundle=uniform)[1])
    num_tokens, num_bytes = len(ids_of(TEXT)), len(TEXT.encode()) - len(b"G")
    assert (found["data"]["num_tokens"], found["data"]["num_scored"]) == (num_tokens, num_tokens - 1)
    assert found["data"]["num_bytes"] == num_bytes
    bits = np.log2(VOCAB_SIZE) * (num_tokens - 1) / num_bytes
    assert found["candidate"]["bits_per_byte"]["value"] == pytest.approx(bits)


def test_a_model_against_itself_agrees_exactly(json_of):
    status, found = json_of(bundle_script=HISTORY)
    agreement = found["agreement"]
    assert status == 0
    assert agreement["kl"]["max"] == 0
    assert agreement["top1"]["value"] == 1
    assert agreement["perplexity_ratio"] == {"value": 1, "low": 1, "high": 1}
    assert found["answers"]["same"]["value"] == 1


def test_two_models_are_told_apart(json_of):
    _, found = json_of()
    assert found["agreement"]["kl"]["mean"]["value"] > 0.1
    assert found["agreement"]["top1"]["value"] < 1
    ratio = found["candidate"]["perplexity"]["value"] / found["reference"]["perplexity"]["value"]
    assert found["agreement"]["perplexity_ratio"]["value"] == pytest.approx(ratio)


def test_windows_add_up_to_the_whole(json_of):
    _, found = json_of()
    counts = [window["num_scored"] for window in found["windows"]]
    logs = [np.log(window["perplexity"]) for window in found["windows"]]
    assert sum(counts) == found["data"]["num_scored"]
    assert np.average(logs, weights=counts) == pytest.approx(found["candidate"]["nll"]["value"])
    kl = [window["kl"] for window in found["windows"]]
    assert np.average(kl, weights=counts) == pytest.approx(found["agreement"]["kl"]["mean"]["value"])


def test_tokens_by_context_add_up_to_the_whole(json_of):
    _, found = json_of()
    bins = found["agreement"]["by_context"]
    assert sum(item["num_tokens"] for item in bins) == found["data"]["num_scored"]
    assert (bins[0]["first_context"], bins[-1]["last_context"]) == (1, 31)


def test_a_run_is_reproducible_to_the_last_digit(json_of):
    first, second = json_of()[1], json_of()[1]
    for found in (first, second):
        found["candidate"].pop("tokens_per_s")
        found["reference"].pop("tokens_per_s")
    assert first == second


def test_the_table_states_the_rule_and_the_figures(two):
    status, out, _ = two()
    assert status == 0
    assert "windows of 32 positions, stride 16: each token scored once, with at least 16 of context" in out
    assert "the tokenizer prepends nothing" in out
    for label in ("perplexity", "bits per byte", "perplexity change", "KL, nats", "top-1 agreement", "equal greedy"):
        assert f"\n{label}" in out


def test_the_table_names_each_prompt_that_parts(two, tmp_path):
    (tmp_path / "prompts.txt").write_text("A\nB\n")
    candidate = answering((ids_of("A"), ids_of("yes")), (ids_of("B"), ids_of("no")))
    reference = answering((ids_of("A"), ids_of("yes")), (ids_of("B"), ids_of("now")))
    words = ("--prompts", tmp_path / "prompts.txt")
    out = two(*words, bundle_script=candidate, reference_script=reference)[1]
    assert "1 of 2, up to 8 tokens each" in out
    assert "prompt 2 differs at token 1: 'w' (margin 10) became '<end>' (margin 10) | 'B'" in out
    assert "prompt 1" not in out


def test_results_are_on_stdout_and_progress_on_stderr(two):
    _, out, err = two("--json")
    json.loads(out)
    assert [line.partition(":")[0].strip() for line in err.splitlines()] == [
        "loading",
        "scoring windows",
        "comparing answers",
    ]
    assert two("--quiet")[2] == ""


def test_no_answers_are_made_where_none_are_wanted(json_of):
    assert json_of("--answer-tokens", "0")[1]["answers"] is None


def test_max_tokens_cuts_the_text(json_of):
    _, found = json_of("--max-tokens", "40")
    assert found["data"]["num_scored"] == 39


def test_gates_that_are_met_exit_with_zero_and_say_nothing(two):
    status, _, err = two("--require", "top1>=1%", "--require", "ppl<=900%", "--quiet")
    assert (status, err) == (0, "")


def test_each_gate_that_is_not_met_is_one_line_and_exit_one(two):
    status, _, err = two("--require", "kl<=0.001", "--require", "ppl<=900%", "--require", "top1>=100%", "--quiet")
    assert status == 1
    first, second = err.splitlines()
    assert first.startswith("gate not met: kl<=0.001: mean KL divergence is ")
    assert second.startswith("gate not met: top1>=100%: top-1 agreement is ")


def test_an_older_spelling_of_a_gate_judges_as_it_did_and_says_how_it_is_written_now(two):
    status, _, err = two("--fail-on", "kl>0.001", "--fail-on", "top1<1%", "--quiet")
    assert status == 1
    note, missed = err.splitlines()
    assert "--fail-on 'kl>0.001' is now --require 'kl<=0.001'" in note
    assert "--fail-on 'top1<1%' is now --require 'top1>=1%'" in note
    assert missed.startswith("gate not met: kl<=0.001: ")


def test_gates_are_in_the_json(json_of):
    status, found = json_of("--require", "ppl<=1", "--require", "bpb<=99")
    assert status == 1
    assert [(gate["expression"], gate["is_met"]) for gate in found["gates"]] == [
        ("ppl<=1", False),
        ("bpb<=99", True),
    ]


def test_the_page_is_written(two, tmp_path):
    (tmp_path / "page.html").write_text("old")
    assert two("--html", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Agreement by position" in page


@pytest.mark.parametrize(
    ("words", "capacity"),
    [
        (("--answer-tokens", "0"), 32),
        (("--answer-tokens", "40"), 48),
        (("--max-length", "96"), 96),
    ],
)
def test_capacity_is_what_windows_and_answers_take_or_what_is_asked(two, monkeypatch, tmp_path, words, capacity):
    (tmp_path / "prompts").write_text("abc\nabcdefgh\n")
    capacities = []
    made = ScriptedEngine.__init__

    def init(self, script, **sizes):
        capacities.append(sizes["capacity"])
        made(self, script, **sizes)

    monkeypatch.setattr(ScriptedEngine, "__init__", init)
    assert two(*words, "--prompts", tmp_path / "prompts")[0] == 0
    assert capacities == [capacity, capacity]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stride", "32"), "the stride must be at least 1 and below the window"),
        (("--window", "97", "--stride", "9"), "--window is 97, but the engine holds 96 positions; lower --window."),
        (("--max-length", "20"), "--window is 32, but the engine holds 20 positions; lower --window or raise"),
        (("--max-length", "97"), "--max-length is 97, but the model has 96 positions"),
        (("--max-tokens", "0"), "--max-tokens is 0"),
        (("--max-tokens", "31"), "has 31 tokens, fewer than one window of 32"),
        (("--answer-tokens", "-1"), "--answer-tokens is -1"),
        (("--answer-tokens", "90"), "and its answer 90, but the engine holds 96"),
        (("--require", "speed<=3"), "Cannot read --require 'speed<=3'"),
        (("--require", "answers>=50%", "--answer-tokens", "0"), "needs answers"),
        (("--html", "/nowhere/page.html"), "there is no directory /nowhere"),
        (("--html", "."), "is a directory"),
        (("--prompts", "/nowhere/prompts"), "Cannot read /nowhere/prompts"),
        (("--data", "/nowhere/text"), "Cannot read /nowhere/text"),
    ],
)
def test_misuse_is_one_line_before_anything_is_loaded(two, words, message):
    status, out, err = two(*words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompts", "p.txt"), "give the other as --reference"),
        (("--require", "kl<=1"), "bounds a comparison; give the other model as --reference"),
        (("--require", "ppl<=2%"), "bounds a comparison"),
    ],
)
def test_comparing_without_a_reference_is_misuse(evaluated, bundle, text, words, message):
    status, out, err = evaluated(bundle, "--data", text, *WINDOW, *words, bundle=uniform)
    assert (status, out) == (2, "")
    assert message in err


def test_an_empty_text_is_misuse(two, text):
    text.write_text("\n")
    status, _, err = two()
    assert status == 2
    assert "holds no text" in err


def test_tokenizers_that_differ_are_misuse(two, reference):
    path = reference / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["merges"] = []
    path.write_text(json.dumps(data), encoding="utf-8")
    status, _, err = two()
    assert status == 2
    assert "as different tokens" in err


def test_a_bundle_that_is_not_there_is_a_failure(evaluated, tmp_path, text):
    status, _, err = evaluated(tmp_path / "absent", "--data", text)
    assert status == 1
    assert "No manifest.json" in err


def test_logits_that_are_no_numbers_are_a_failure(two):
    status, out, err = two("--quiet", bundle_script=lambda history: np.full(VOCAB_SIZE, np.nan))
    assert (status, out) == (1, "")
    assert err.startswith("error: The logits hold NaN")


def test_a_model_directory_of_a_type_the_cpu_lacks_is_a_failure_with_the_way_out(evaluated, tmp_path, text):
    write_bundle(tmp_path / "model", engines=(), kind="model")
    edit_manifest(
        tmp_path / "model",
        lambda data: [state.update(dtype="bfloat16") for state in data["graphs"]["decoder"]["states"]],
    )
    status, _, err = evaluated(tmp_path / "model", "--data", text, *WINDOW)
    assert status == 1
    assert "piston build" in err


def test_a_target_is_asked_of_bundles_only(evaluated, tmp_path, text):
    write_bundle(tmp_path / "model", engines=(), kind="model")
    status, _, err = evaluated(tmp_path / "model", "--data", text, *WINDOW, "--target", "ort-cpu")
    assert status == 2
    assert "--target is for bundles" in err


def test_documents_of_jsonl_are_scored_apart(evaluated, bundle, tmp_path):
    (tmp_path / "text.jsonl").write_text('"abcdefgh"\n' * 9)
    words = (bundle, "--data", tmp_path / "text.jsonl", *WINDOW, "--json")
    found = json.loads(evaluated(*words, bundle=uniform)[1])
    assert (found["data"]["num_documents"], found["data"]["num_scored"]) == (9, 63)
    assert [window["document"] for window in found["windows"]] == list(range(9))


def test_an_answer_may_be_the_end_token_alone(json_of):
    def ending(history):
        logits = np.zeros(VOCAB_SIZE, np.float32)
        logits[END] = 5
        return logits

    _, found = json_of(bundle_script=ending, reference_script=ending)
    assert {item["reference_text"] for item in found["answers"]["prompts"]} == {""}
    assert found["answers"]["same"]["value"] == 1


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
def test_the_page_does_not_replace_a_file_of_what_is_evaluated(two, bundle, reference, text, name):
    for place in (bundle / name, reference / name, text):
        before = place.read_bytes()
        status, out, err = two("--html", place)
        assert (status, out, "would replace" in err) == (2, "", True)
        assert place.read_bytes() == before
