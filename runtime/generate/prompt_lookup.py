"""Prompt lookup: drafts the tokens that followed the last tokens when they occurred before.

No draft model: summaries, edits and tables repeat their source, and a text repeats itself. The idea is Saxena's prompt
lookup decoding (2023), `prompt_lookup_num_tokens` in transformers and the ngram method of vLLM. Works on token ids.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LONGEST_MATCH = 8


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens, and how many tokens before them agreed with the earlier occurrence."""

    token_ids: Sequence[int]
    match_len: int


class PromptLookup:
    """The tokens of a row so far, indexed by every run of 1 to LONGEST_MATCH of them.

    Appending and looking up take a few dictionary operations each, independent of the length of the row.
    """

    def __init__(self, token_ids: Iterable[int]) -> None:
        self._token_ids: list[int] = []
        self._continued_at: dict[tuple[int, ...], int] = {}  # a run of tokens: the position after its last occurrence
        for token_id in token_ids:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Append the next token of the row."""
        place = len(self._token_ids)
        for match_len in range(1, min(LONGEST_MATCH, place) + 1):
            self._continued_at[tuple(self._token_ids[place - match_len :])] = place
        self._token_ids.append(token_id)

    def propose(self, num_tokens: int) -> Draft | None:
        """Draft the next `num_tokens` tokens from the longest match, the latest among equals; None without one.

        A match that reaches the end of the row is periodic: it is repeated.
        """
        ids = self._token_ids
        for match_len in range(min(LONGEST_MATCH, len(ids)), 0, -1):
            place = self._continued_at.get(tuple(ids[len(ids) - match_len :]))
            if place is not None:
                period = len(ids) - place
                return Draft([ids[place + i % period] for i in range(num_tokens)], match_len)
        return None
