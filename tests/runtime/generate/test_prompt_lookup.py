from hypothesis import given
from hypothesis import strategies as st

from piston.runtime.generate.prompt_lookup import LONGEST_MATCH, PromptLookup

ROWS = st.lists(st.integers(0, 3), max_size=30)


def by_search(row, num_tokens):
    """The definition: the longest end of the row that occurs before, at its latest place, and what came behind it."""
    for match_len in range(min(LONGEST_MATCH, len(row) - 1), 0, -1):
        for start in range(len(row) - match_len - 1, -1, -1):
            if row[start : start + match_len] == row[-match_len:]:
                guess = list(row)
                for _ in range(num_tokens):
                    guess.append(guess[start + match_len + len(guess) - len(row)])
                return guess[len(row) :], match_len
    return None


@given(ROWS, st.integers(1, 12))
def test_a_guess_is_what_a_search_through_the_row_finds(row, num_tokens):
    draft = PromptLookup(row).propose(num_tokens)
    assert (None if draft is None else (list(draft.token_ids), draft.match_len)) == by_search(row, num_tokens)


@given(ROWS)
def test_appending_is_the_same_as_beginning_with_all(row):
    lookup = PromptLookup(row[: len(row) // 2])
    for token_id in row[len(row) // 2 :]:
        lookup.append(token_id)
    assert lookup.propose(5) == PromptLookup(row).propose(5)


def test_tokens_never_seen_before_give_no_guess():
    assert PromptLookup([1, 2, 3]).propose(4) is None


def test_a_longer_match_beats_a_later_one():
    draft = PromptLookup([1, 2, 8, 5, 2, 9, 1, 2]).propose(1)
    assert (draft.token_ids, draft.match_len) == ([8], 2)


def test_a_period_goes_on_round_and_round():
    assert PromptLookup([7, 1, 2, 3, 1, 2, 3, 1]).propose(7).token_ids == [2, 3, 1, 2, 3, 1, 2]
