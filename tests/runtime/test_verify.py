import dataclasses
import json

import numpy as np
import pytest
from toy_model import END, VOCAB_SIZE, byte_tokenizer, history_script, ids_of, said, write_bundle

from piston.core.bundle.golden import FILE_NAME, Golden, GoldenAnswer, GoldenByTarget
from piston.core.errors import BundleCorruptError, BundleError, BundleNotFoundError
from piston.runtime.backends.scripted import ScriptedEngine
from piston.runtime.verify import margin_of, verify

SCRIPT = history_script()
TEXTS = ("hello no", "no world", "1 + 1 =")


def answer_of(text, script=SCRIPT, num_tokens=6):
    ids = ids_of(text)
    tokens = [*said(lambda history: np.where(np.arange(VOCAB_SIZE) == END, -99, script(history)), ids, num_tokens)]
    margins = [margin_of(script((*ids, *tokens[:index])), token) for index, token in enumerate(tokens)]
    return GoldenAnswer(prompt=text, prompt_ids=tuple(ids), token_ids=tuple(tokens), margins=tuple(margins))


EXPECTED = Golden(answers=tuple(answer_of(text) for text in TEXTS), noise=0.0, by="engine")


def changed_at(text, position, token_id, value=50.0, script=SCRIPT):
    """The script, but one token wins after `position` tokens of the answer to `text`."""
    answer = next(item for item in EXPECTED.answers if item.prompt == text)
    there = (*answer.prompt_ids, *answer.token_ids[:position])

    def changed(history):
        logits = script(history).copy()
        if tuple(history) == there:
            logits[token_id] = value
        return logits

    return changed


def verdict_of(script, expected=EXPECTED, threshold=0.01, num_slots=2, tokenizer=None, capacity=64):
    engine = ScriptedEngine(script, vocab_size=VOCAB_SIZE, num_slots=num_slots, capacity=capacity)
    verdict = verify(engine, tokenizer or byte_tokenizer(), expected, threshold)
    assert engine.cache.num_free == num_slots
    return verdict


@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_the_engine_that_gave_the_answers_passes(num_slots):
    verdict = verdict_of(SCRIPT, num_slots=num_slots)
    decided = sum(margin > 0.01 for answer in EXPECTED.answers for margin in answer.margins)
    assert (verdict.is_passed, verdict.num_prompts, verdict.num_tokens) == (True, 3, 18)
    assert verdict.num_decided == decided > 12


def test_a_mismatch_names_prompt_position_and_both_tokens():
    position = int(np.argmax(EXPECTED.answers[1].margins))
    wanted = EXPECTED.answers[1].token_ids[position]
    verdict = verdict_of(changed_at("no world", position, 7))
    (mismatch,) = verdict.mismatches
    assert not verdict.is_passed
    assert (mismatch.what, mismatch.prompt, mismatch.position) == ("engine", "no world", position)
    assert (mismatch.expected_id, mismatch.got_id) == (wanted, 7)
    assert f"expected {wanted} " in str(mismatch)


def test_a_mismatch_does_not_hide_a_later_one_of_another_prompt():
    first, last = EXPECTED.answers[0], EXPECTED.answers[2]
    script = changed_at(first.prompt, int(np.argmax(first.margins)), 9)
    script = changed_at(last.prompt, int(np.argmax(last.margins)), 9, script=script)
    assert [mismatch.prompt for mismatch in verdict_of(script).mismatches] == [first.prompt, last.prompt]


def test_an_undecided_token_is_not_judged():
    position = int(np.argmin(EXPECTED.answers[0].margins))
    smallest = EXPECTED.answers[0].margins[position]
    script = changed_at("hello no", position, 7)
    assert verdict_of(script, threshold=smallest + 1e-6).is_passed
    assert not verdict_of(script, threshold=smallest - 1e-6).is_passed


def test_where_nothing_is_decided_nothing_passes():
    verdict = verdict_of(SCRIPT, threshold=1e9)
    assert (verdict.is_passed, verdict.num_decided, verdict.mismatches) == (False, 0, [])


def test_a_logit_that_is_not_finite_parts():
    position = int(np.argmax(EXPECTED.answers[0].margins))
    assert not verdict_of(changed_at("hello no", position, 7, value=-np.inf)).is_passed


def test_another_tokenizer_parts_at_its_first_token():
    answer = dataclasses.replace(EXPECTED.answers[0], prompt="hello ni")
    (mismatch,) = verdict_of(SCRIPT, Golden(answers=(answer,), noise=0.0, by="engine")).mismatches
    assert (mismatch.what, mismatch.position) == ("tokenizer", 1)
    assert "the tokenizer differs at token 1 of 'hello ni'" in str(mismatch)


def test_answers_that_do_not_fit_are_refused():
    with pytest.raises(BundleError, match=r"need .* positions"):
        verdict_of(SCRIPT, capacity=8)
    answer = dataclasses.replace(EXPECTED.answers[0], token_ids=(VOCAB_SIZE,), margins=(1.0,))
    with pytest.raises(BundleError, match="ids up to"):
        verdict_of(SCRIPT, Golden(answers=(answer,), noise=0.0, by="engine"))


def test_a_half_precision_engine_is_judged_by_wider_margins():
    thresholds = [EXPECTED.threshold(dtype) for dtype in ("float32", "float16", "bfloat16", "unknown")]
    assert thresholds == sorted(thresholds)
    assert Golden(answers=(), noise=3.0, by="engine").threshold("float32") == 6.0


def by_target(expected):
    return GoldenByTarget(engines={"ort-cpu": expected})


def test_a_target_without_answers_is_damage():
    with pytest.raises(BundleCorruptError, match="no answers for tensorrt"):
        by_target(EXPECTED).of("tensorrt")


def bundle_with(directory, expected=EXPECTED):
    directory.mkdir(exist_ok=True)
    by_target(expected).write(directory)
    write_bundle(directory)
    return directory


def test_the_command_passes_and_counts(piston, tmp_path):
    result = piston("verify", bundle_with(tmp_path / "b"), "--quiet", script=SCRIPT)
    assert (result.status, result.err) == (0, "")
    assert "ort-cpu answers as built" in result.out
    assert "of 18 tokens of 3 prompts" in result.out


def test_the_command_fails_and_says_where(piston, tmp_path):
    position = int(np.argmax(EXPECTED.answers[1].margins))
    script = changed_at("no world", position, 7)
    result = piston("verify", bundle_with(tmp_path / "b"), "--quiet", "--json", script=script)
    mismatch = json.loads(result.out)["mismatches"][0]
    assert (result.status, mismatch["prompt"], mismatch["position"], mismatch["got_id"]) == (1, "no world", position, 7)
    assert "the engine differs at" in result.err


def test_a_bundle_without_answers_says_so(refused, bundle):
    status, message = refused("verify", bundle)
    assert (status, "build it again" in message) == (1, True)
    with pytest.raises(BundleNotFoundError):
        GoldenByTarget.read(bundle)


def test_a_changed_answers_file_is_damage(refused, tmp_path):
    directory = bundle_with(tmp_path / "b")
    by_target(dataclasses.replace(EXPECTED, noise=9.0)).write(directory)
    status, message = refused("verify", directory, "--quiet")
    assert (status, FILE_NAME in message) == (1, True)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.update(schema=2),
        lambda data: data["engines"]["ort-cpu"]["answers"][0].update(prompt_ids=[]),
        lambda data: data["engines"]["ort-cpu"]["answers"][0].update(margins=[]),
        lambda data: data["engines"]["ort-cpu"]["answers"][0].update(token_ids=[-1] * 6),
        lambda data: data["engines"]["ort-cpu"].pop("noise"),
    ],
)
def test_answers_of_another_shape_are_refused(tmp_path, edit):
    by_target(EXPECTED).write(tmp_path)
    data = json.loads((tmp_path / FILE_NAME).read_text())
    edit(data)
    (tmp_path / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(BundleCorruptError, match="build the bundle again"):
        GoldenByTarget.read(tmp_path)
