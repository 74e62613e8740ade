"""The vocabulary of a model: ids and tokens, and the bytes that each token adds to a text."""

import codecs
import json
import re
from typing import TYPE_CHECKING, Any

from piston.core.errors import MisuseError

if TYPE_CHECKING:
    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """Ids to tokens, and to the bytes of a text.

    Args:
        decoding: the `tokenizer.json` that says how answers are spelled.
    """

    def __init__(self, decoding: "tokenizers.Tokenizer") -> None:
        self._decoding = decoding
        added = decoding.get_added_tokens_decoder()
        self._special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.added_tokens = {token.content: token.special for token in added.values()}  # and whether each is special
        steps = _decoder_steps(decoding)
        self._is_byte_level = "ByteLevel" in steps
        self._has_byte_tokens = "ByteFallback" in steps

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's logits may be padded beyond it."""
        return self._decoding.get_vocab_size(with_added_tokens=True)

    def id_of(self, token: str) -> int | None:
        """The id of a token as `tokenizer.json` spells it, or None."""
        return self._decoding.token_to_id(token)

    def token_of(self, token_id: int) -> str | None:
        """A token as `tokenizer.json` spells it, or None for an id without one.

        Raises:
            MisuseError: the id is not an unsigned 32-bit integer.
        """
        try:
            return self._decoding.id_to_token(token_id)
        except (OverflowError, TypeError) as error:
            raise MisuseError(f"{token_id!r} is not a token id; ids are integers from 0") from error

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token such as <|im_end|>, not text."""
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that a token adds in the middle of a text, maybe part of a character; empty for an unknown id."""
        return self.bytes_after(token_id, token_id)

    def text_of(self, token_id: int) -> str:
        """Text that a token adds in the middle of a text, with U+FFFD for part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def bytes_after(self, previous_id: int | None, token_id: int) -> bytes:
        """Bytes that a token adds after another token, or (None) to an empty text."""
        token = self.token_of(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            return _bytes_from_byte_level(token)
        if self._has_byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
            byte = bytes.fromhex(match[1])
            # At the start even a byte may be dropped: <0x20>, if the decoder strips the first space.
            if previous_id is not None or not byte.isascii():
                return byte
        return self._text_after(previous_id, token_id).encode()

    def utf8_decoder(self) -> codecs.IncrementalDecoder:
        """A fresh decoder for what `bytes_after` gives; bytes it escapes stand for U+FFFD.

        An incomplete character becomes one U+FFFD in byte-level text and one for each byte in byte tokens:
        the habits of Rust's `from_utf8_lossy` and of SentencePiece.
        """
        return codecs.getincrementaldecoder("utf-8")("replace" if self._is_byte_level else "surrogateescape")

    def _text_after(self, previous_id: int | None, token_id: int) -> str:
        # No decoder looks further back than one token, except to see whether a token is the first.
        before = [] if previous_id is None else [previous_id]
        already = self._decoding.decode(before, skip_special_tokens=False)
        both = self._decoding.decode([*before, token_id], skip_special_tokens=False)
        return both[len(already) :]


def _decoder_steps(backend: "tokenizers.Tokenizer") -> frozenset[str]:
    """The decoder types of the tokenizer, such as {"ByteFallback", "Fuse", "Replace"}."""
    if backend.decoder is None:
        return frozenset()
    # Its pickle is JSON, and much smaller than the whole tokenizer's (tokenizers 0.23).
    pending: list[dict[str, Any]] = [json.loads(backend.decoder.__getstate__())]
    types = set()
    while pending:
        step = pending.pop()
        types.add(step["type"])
        pending += step.get("decoders", [])
    return frozenset(types)


def _byte_of_char() -> dict[str, int]:
    """The characters that represent bytes in byte-level vocabularies (`bytes_to_unicode` of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def _bytes_from_byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:  # an added token, kept as spelled
        return token.encode()
