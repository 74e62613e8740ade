import pytest
from toy_model import END, answering, byte_tokenizer, history_script, ids_of, said, toy_model

from piston.core.errors import EmptyPromptError, PromptTooLongError
from piston.evaluation.answers import check_prompts_fit, compare_answers
from piston.evaluation.prompts import Prompt


def compared(candidate, reference, *texts, max_tokens=16, num_slots=2, on_token=lambda done, total: None):
    models = [toy_model(script, num_slots=num_slots) for script in (candidate, reference)]
    return compare_answers(*models, [Prompt(text) for text in texts], max_tokens, on_token)


def answer(text, said):
    return answering((ids_of(text), ids_of(said)))


def test_equal_answers_have_no_divergence():
    found = compared(answer("Q", "yes"), answer("Q", "yes"), "Q")
    assert [(item.is_same, item.reference_text, item.candidate_text) for item in found.prompts] == [
        (True, "yes", "yes")
    ]
    assert found.same.value == 1.0


def test_the_first_token_that_differs_is_told_with_both_margins():
    def unsure(history):
        logits = answer("Q", "yet")(history).copy()
        logits[ids_of("s")[0]] += 9
        return logits

    (item,) = compared(unsure, answer("Q", "yes"), "Q").prompts
    assert item.divergence.position == 2
    assert (item.divergence.reference.text, item.divergence.candidate.text) == ("s", "t")
    assert item.divergence.reference.token_id == ids_of("s")[0]
    assert item.divergence.reference.margin == pytest.approx(10)
    assert item.divergence.candidate.margin == pytest.approx(1)
    assert (item.reference_text, item.candidate_text) == ("yes", "yet")


def test_an_answer_that_ends_early_parts_at_its_end_token():
    (item,) = compared(answer("Q", "yes"), answer("Q", "yes!"), "Q").prompts
    assert item.divergence.position == 3
    assert (item.divergence.candidate.token_id, item.divergence.candidate.text) == (END, "<end>")


def test_the_share_of_whole_answers_has_wilsons_interval():
    candidate = answering((ids_of("A"), ids_of("x")), (ids_of("B"), ids_of("y")))
    reference = answering((ids_of("A"), ids_of("x")), (ids_of("B"), ids_of("z")))
    same = compared(candidate, reference, "A", "B").same
    assert (same.value, same.low, same.high) == pytest.approx((0.5, 0.0945, 0.9055), abs=1e-4)


@pytest.mark.parametrize("num_slots", [1, 3])
def test_answers_are_greedy_however_many_are_decoded_together(num_slots):
    texts = ["a", "bb", "ccc", "dd", "e"]
    script = history_script()
    found = compared(script, script, *texts, max_tokens=5, num_slots=num_slots)
    expected = [byte_tokenizer().decode(said(script, text, 5)) for text in texts]
    assert [item.candidate_text for item in found.prompts] == expected


def test_progress_counts_the_tokens_of_both():
    told = []
    compared(answer("Q", "yes"), answer("Q", "yes"), "Q", on_token=lambda done, total: told.append((done, total)))
    assert told == [(1, 32), (2, 32), (3, 32), (4, 32), (17, 32), (18, 32), (19, 32), (20, 32)]


def test_a_prompt_without_room_for_its_answer_is_refused_by_its_number():
    check_prompts_fit([[1] * 5], 5, 10)
    with pytest.raises(PromptTooLongError, match="Prompt 2 has 6 tokens and its answer 5, but the engine holds 10"):
        check_prompts_fit([[1] * 5, [1] * 6], 5, 10)


def test_an_empty_prompt_is_refused_by_its_number():
    with pytest.raises(EmptyPromptError, match="Prompt 1 has no tokens"):
        check_prompts_fit([[]], 5, 10)
