"""Which tokens of a vocabulary control a prompt, so that texts of others must not bring them into one."""

import re
from collections.abc import Iterable, Mapping


def control_tokens(tokens: Mapping[str, bool], prompt: str) -> list[str]:
    """Special tokens, and added ones that the prompt names.

    Args:
        tokens: as `Tokenizer.added_tokens`.
        prompt: what is written around the texts. White space in it is text, even where it is an added token.
    """
    return [token for token, is_special in tokens.items() if is_special or (not token.isspace() and token in prompt)]


def any_of(tokens: Iterable[str]) -> str:
    """A regular expression for any of the tokens, the longest first; for none, one that never matches."""
    return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"
