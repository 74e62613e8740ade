import json

import pytest
from toy_model import END, answering, edit_manifest, history_script, ids_of, write_bundle

SHORT = ("--max-tokens", "16")
HISTORY = history_script()


def answer(text, answered):
    return answering((ids_of(text), ids_of(answered)))


def test_the_answer_is_printed_with_one_newline(piston, bundle):
    result = piston("run", bundle, "--prompt", "Q", *SHORT, script=answer("Q", "hello, 👍"))
    assert (result.status, result.out) == (0, "hello, 👍\n")


def test_without_a_number_the_answer_is_as_long_as_the_engine_holds(piston, bundle):
    # The toy's engine holds fewer positions than the 256 tokens of an answer.
    result = piston("run", bundle, "--prompt", "Q", script=answer("Q", "hello"))
    assert (result.status, result.out) == (0, "hello\n")
    long = piston("run", bundle, "--prompt", "Q", "--max-tokens", "9999", script=answer("Q", "hello"))
    assert long.status != 0


def test_the_speed_is_one_line_on_stderr(piston, bundle):
    err = piston("run", bundle, "--prompt", "Q", *SHORT, script=answer("Q", "hello")).err
    assert err.startswith("[1 tokens in, ")
    assert err.endswith("ended by stop]\n")
    assert err.count("\n") == 1


def test_quiet_leaves_stderr_empty(piston, bundle):
    assert piston("run", bundle, "--prompt", "Q", "--quiet", *SHORT, script=answer("Q", "hello")).err == ""


def test_a_dash_reads_the_prompt_from_stdin(piston, bundle):
    assert piston("run", bundle, "--prompt", "-", *SHORT, stdin="Q\n", script=answer("Q\n", "yes")).out == "yes\n"


def test_a_prompt_may_come_from_a_file(piston, bundle, tmp_path):
    (tmp_path / "prompt").write_text("é?", encoding="utf-8")
    result = piston("run", bundle, "--prompt-file", tmp_path / "prompt", *SHORT, script=answer("é?", "yes"))
    assert result.out == "yes\n"


@pytest.mark.parametrize("options", [("--prompt", "-"), ("--prompt-file", "FILE")])
def test_a_prompt_keeps_its_line_ends_and_loses_its_byte_order_mark(piston, bundle, tmp_path, options):
    (tmp_path / "FILE").write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    words = [tmp_path / word if word == "FILE" else word for word in options]
    data = (tmp_path / "FILE").read_bytes()
    assert piston("run", bundle, *words, *SHORT, stdin=data, script=answer("a\r\nb\n", "yes")).out == "yes\n"


@pytest.mark.parametrize("options", [("--prompt", "-"), ("--prompt-file", "FILE")])
def test_a_prompt_with_nul_characters_is_misuse(refused, bundle, tmp_path, options):
    (tmp_path / "FILE").write_bytes("ab".encode("utf-16-le"))
    words = [tmp_path / word if word == "FILE" else word for word in options]
    status, message = refused("run", bundle, *words, *SHORT, stdin=(tmp_path / "FILE").read_bytes())
    assert status == 2
    assert "is NUL, as in UTF-16" in message


@pytest.mark.parametrize("options", [("--prompt", "-"), ("--prompt-file", "FILE")])
def test_a_prompt_that_is_not_utf8_is_misuse(refused, bundle, tmp_path, options):
    (tmp_path / "FILE").write_bytes(b"\xff\xfe")
    words = [tmp_path / word if word == "FILE" else word for word in options]
    status, message = refused("run", bundle, *words, *SHORT, stdin=b"\xff\xfe")
    assert status == 2
    assert "is not UTF-8" in message


@pytest.mark.parametrize("options", [("--prompt", "-"), ("--prompt-file", "FILE"), ("--chat", "--prompt", "-")])
@pytest.mark.parametrize("text", ["", " \n"])
def test_a_prompt_without_text_is_misuse(refused, bundle, tmp_path, options, text):
    (tmp_path / "FILE").write_text(text)
    words = [tmp_path / word if word == "FILE" else word for word in options]
    status, message = refused("run", bundle, *words, *SHORT, stdin=text)
    name = "Standard input" if "-" in options else tmp_path / "FILE"
    assert (status, message.partition(";")[0]) == (2, f"{name} has no text")


def test_chat_puts_the_prompt_into_the_template(piston, bundle):
    script = answer("<system>brief<end><user>hi<end><bot>", "hello")
    assert (
        piston("run", bundle, "--chat", "--system", "brief", "--prompt", "hi", *SHORT, script=script).out == "hello\n"
    )


def test_chat_without_a_template_is_a_failure(refused, tmp_path):
    write_bundle(tmp_path, template=None)
    edit_manifest(tmp_path, lambda data: data["tokenizer"].update(has_chat_template=False))
    status, message = refused("run", tmp_path, "--chat", "--prompt", "hi", *SHORT)
    assert status == 1
    assert "no chat template" in message


def test_echo_prints_the_prompt_first(piston, bundle):
    result = piston("run", bundle, "--prompt", "Q:", "--echo", *SHORT, script=answer("Q:", "hello"))
    assert result.out == "Q:hello\n"


def test_json_holds_what_the_completion_holds(piston, bundle):
    result = piston("run", bundle, "--json", "--prompt", "Q:", "--seed", "7", *SHORT, script=answer("Q:", "hello"))
    (completion,) = json.loads(result.out)["completions"]
    timings = completion.pop("timings")
    assert 0 <= timings["queue_s"] <= timings["prefill_s"] + timings["queue_s"] <= timings["time_to_first_token_s"]
    assert 0 < timings["tokenizing_s"] + timings["sampling_s"] < timings["total_s"]
    assert completion == {
        "text": "hello",
        "token_ids": [*ids_of("hello"), END],
        "finish_reason": "stop",
        "stop_reason": END,
        "prompt_tokens": 2,
        "prefilled_tokens": 2,
        "seed": 7,
    }
    assert result.err == ""


def test_json_holds_logprobs_whose_bytes_join_to_the_text(piston, bundle):
    words = ["--logprobs", "--top-logprobs", "2", "--json", *SHORT]
    result = piston("run", bundle, "--prompt", "Q", *words, script=answer("Q", "né 👍"))
    positions = json.loads(result.out)["completions"][0]["logprobs"]
    assert bytes(byte for position in positions[:-1] for byte in position["bytes"]).decode() == "né 👍"
    assert all(len(position["top"]) == 2 for position in positions)


def test_several_answers_are_numbered(piston, bundle):
    words = ["-n", "3", "--temperature", "0.01", *SHORT]
    result = piston("run", bundle, "--prompt", "Q", *words, script=answer("Q", "yes"))
    assert result.out == "[0] yes\n[1] yes\n[2] yes\n"


def test_json_holds_several_answers(piston, bundle):
    words = ["-n", "3", "--temperature", "1", "--json", *SHORT]
    assert len(json.loads(piston("run", bundle, "--prompt", "Q", *words, script=HISTORY).out)["completions"]) == 3


def test_sampling_options_reach_the_sampler(piston, bundle):
    result = piston("run", bundle, "--prompt", "Q", "--stop", "lo", "--stop", "x", *SHORT, script=answer("Q", "hello"))
    assert result.out == "hel\n"


def test_the_same_seed_prints_the_same_text(piston, bundle):
    words = ["run", bundle, "--prompt", "Q", "--temperature", "1", "--json", *SHORT, "--seed"]
    texts = [json.loads(piston(*words, seed, script=HISTORY).out)["completions"][0]["text"] for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


@pytest.fixture
def recommending(bundle):
    edit_manifest(bundle, lambda data: data.update(generation={"temperature": 0.9, "max_new_tokens": 3}))
    return bundle


def test_the_checkpoints_sampling_is_not_used_unasked(piston, recommending):
    completion = json.loads(piston("run", recommending, "--json", "--prompt", "Q", *SHORT, script=HISTORY).out)
    assert len(completion["completions"][0]["token_ids"]) == 16


def test_the_checkpoints_sampling_is_used_when_asked(piston, recommending):
    words = ["--checkpoint-sampling", "--json", "--prompt", "Q"]
    completion = json.loads(piston("run", recommending, *words, script=HISTORY).out)["completions"][0]
    assert len(completion["token_ids"]) == 3


def test_options_may_rely_on_the_checkpoints_sampling(piston, recommending):
    words = ["--checkpoint-sampling", "--json", "--prompt", "Q", "-n", "2"]  # needs its temperature
    result = piston("run", recommending, *words, script=HISTORY)
    assert result.err == ""
    assert len(json.loads(result.out)["completions"]) == 2


def test_a_recommendation_that_is_not_supported_matters_only_when_asked_for(piston, refused, bundle):
    edit_manifest(bundle, lambda data: data.update(generation={"num_beams": 4}))
    assert piston("run", bundle, "--prompt", "Q", *SHORT, script=answer("Q", "yes")).out == "yes\n"
    assert "num_beams" in refused("run", bundle, "--prompt", "Q", "--checkpoint-sampling", *SHORT)[1]


def test_logprobs_are_absent_from_json_unless_asked_for(piston, bundle):
    result = piston("run", bundle, "--json", "--prompt", "Q", *SHORT, script=answer("Q", "yes"))
    assert "logprobs" not in json.loads(result.out)["completions"][0]


def test_guessing_prints_the_same_text_and_what_came_of_it(piston, bundle, monkeypatch):
    monkeypatch.setattr("piston.runtime.generate.speculation.StepCost.observe", lambda *_: None)  # no clock in a test
    got = {"attention_layers": 1, "own_kernels": {"attention": 1}}
    edit_manifest(bundle, lambda data: data["engines"][0].update(actual=got))
    prompt, reply = "one two three, one two three, one", " two three, one two three"
    words = ["--prompt", prompt, "--max-tokens", "30", "--json"]
    plain = piston("run", bundle, *words, script=answer(prompt, reply))
    guessed = piston("run", bundle, *words, "--prompt-lookup", "8", script=answer(prompt, reply))
    before, after = (json.loads(result.out)["completions"][0] for result in (plain, guessed))
    assert after["token_ids"] == before["token_ids"]
    assert "drafts" not in before
    assert after["drafts"]["accepted"] > 10
    assert after["drafts"]["acceptance"] == after["drafts"]["accepted"] / after["drafts"]["drafted"]


def test_why_nothing_is_guessed_is_in_the_line_about_speed(piston, bundle):
    result = piston("run", bundle, "--prompt", "Q", "--prompt-lookup", "4", *SHORT, script=answer("Q", "hello"))
    assert "none guessed (this engine rounds" in result.err


def test_more_guesses_than_can_be_verified_are_misuse(refused, bundle):
    status, message = refused("run", bundle, "--prompt", "Q", "--prompt-lookup", "16")
    assert (status, "from 0 to 15" in message) == (2, True)
