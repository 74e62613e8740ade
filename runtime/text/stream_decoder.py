"""Ids to text, one at a time, while a model writes."""

import itertools
import re
from collections.abc import Sequence

from piston.runtime.text.vocabulary import Vocabulary

_NUM_BEFORE = 4  # preceding tokens that a text may depend on: three bytes of a character, and the token before them
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


class StreamDecoder:
    """Decodes ids to text one at a time, in constant time for each.

    Every piece consists of whole code points: at most three bytes are held back until the next token
    completes or refutes them. Nothing else is held back, so U+FFFD in a text is passed on like any character.
    A piece may end inside a grapheme (an emoji before the joiner that extends it): the next piece continues
    it, and the joined pieces are the whole text. Holding graphemes back would delay every character by a token.

    Args:
        tokenizer: the tokenizer of the ids.
        skip_special_tokens: leave out tokens such as <|im_end|>.
        after: ids of the preceding text, such as the prompt's. Decoders drop the space before the first
            word of a text, and a character may begin in one text and end in the other.
    """

    def __init__(self, tokenizer: Vocabulary, *, skip_special_tokens: bool = True, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = tokenizer.utf8_decoder()
        self._previous_id: int | None = None
        self._shown_before = ""
        decoded = (id_ for id_ in reversed(after) if self._is_decoded(id_))
        for id_ in reversed([*itertools.islice(decoded, _NUM_BEFORE)]):
            self.push(id_)
        # An unfinished character of the preceding text is shown there as U+FFFD; it must not be shown twice.
        unfinished, _ = self._utf8.getstate()
        self._shown_before = _visible(tokenizer.utf8_decoder().decode(unfinished, final=True))

    def push(self, token_id: int) -> str:
        """Take the next id; return the text that became final, often a word, sometimes nothing.

        Raises:
            MisuseError: the id is not an unsigned 32-bit integer.
        """
        if not self._is_decoded(token_id):
            return ""
        data = self._tokenizer.bytes_after(self._previous_id, token_id)
        self._previous_id = token_id
        return self._text(data)

    def flush(self) -> str:
        """Return the rest, an unfinished character as U+FFFD, and start a new text."""
        self._previous_id = None
        return self._text(b"", final=True)

    def _text(self, data: bytes, *, final: bool = False) -> str:
        text = _visible(self._utf8.decode(data, final=final))
        if text and self._shown_before:
            text, self._shown_before = text.removeprefix(self._shown_before), ""
        return text

    def _is_decoded(self, token_id: int) -> bool:
        is_skipped = self._skip_special_tokens and self._tokenizer.is_special(token_id)
        return not is_skipped and self._tokenizer.token_of(token_id) is not None


def _visible(text: str) -> str:
    return _ESCAPED_BYTE.sub("\ufffd", text)
