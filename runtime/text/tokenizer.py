"""Text to token ids and back, over a `tokenizer.json`; whole, or piece by piece while a model writes.

It knows nothing of models or chats. `Tokenizer.decode` uses `StreamDecoder`, so streamed text and decoded text are
always the same.
"""

import codecs
import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from piston.core.errors import BundleCorruptError, MisuseError

if TYPE_CHECKING:
    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
HIDDEN = " "  # begins pieces of a vocabulary that a text never becomes: tokenizer.json writes a space as ▁
_NUM_BEFORE = 4  # preceding tokens that a text may depend on: three bytes of a character, and the token before them
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


class Tokenizer:
    """The vocabulary of a model: text to ids, ids to text.

    Args:
        backend: the loaded `tokenizer.json`; its truncation and padding are switched off.
        bos_token_id: the id that begins a text, if the model has one.
        eos_token_ids: the ids that end a text.
        answers: decodes instead of `backend`, of a model whose answers are spelled otherwise than what it reads.
        unknown_ids: of a vocabulary that numbers the pieces of SentencePiece anew: the first id that stands for a piece
            which the model does not have, and the unknown token that such ids become.
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Iterable[int] = (),
        answers: "tokenizers.Tokenizer | None" = None,
        unknown_ids: Sequence[int] = (),
    ) -> None:
        # Files saved during training have these, and would silently truncate long prompts.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._decoding = answers or backend
        self._unknown_ids = tuple(unknown_ids)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        added = self._decoding.get_added_tokens_decoder()
        self._special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.added_tokens = {token.content: token.special for token in added.values()}  # and whether each is special
        steps = _decoder_steps(self._decoding)
        self._is_byte_level = "ByteLevel" in steps
        self._has_byte_tokens = "ByteFallback" in steps

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Iterable[int] = (),
        answers: str | os.PathLike[str] | None = None,
        unknown_ids: Sequence[int] = (),
    ) -> Self:
        """Read a `tokenizer.json`, and that of `answers` if there is one.

        Raises:
            BundleCorruptError: a file is missing, or is not a tokenizer.
        """
        return cls(
            _backend(path),
            bos_token_id=bos_token_id,
            eos_token_ids=eos_token_ids,
            answers=None if answers is None else _backend(answers),
            unknown_ids=unknown_ids,
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's logits may be padded beyond it."""
        return self._decoding.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """The whole tokenizer as `tokenizer.json` holds it."""
        return self._backend.to_str()

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

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts in front of every text, such as BOS, and what behind it, such as a separator."""
        plain, whole = self.encode("a", add_special_tokens=False), self.encode("a")
        starts = range(len(whole) - len(plain) + 1)
        start = next((start for start in starts if whole[start : start + len(plain)] == plain), 0)
        return whole[:start], whole[start + len(plain) :]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encode text as ids, without truncation.

        A special token spelt out in the text becomes that token, as chat templates need.

        Args:
            text: what to encode.
            add_special_tokens: add the model's special tokens around a text, such as the first token; pass
                False for the output of a chat template, which writes its own.

        Raises:
            MisuseError: the text is not Unicode (an unpaired surrogate), or not a string.
            BundleCorruptError: the tokenizer lacks the unknown token that its own rules require.
        """
        with _encoding(text):
            found = self._backend.encode(text, add_special_tokens=add_special_tokens)
        if not self._unknown_ids:
            return found.ids
        parts = zip(found.ids, found.tokens, found.offsets, strict=True)
        return [self._numbered(token_id, token, text[slice(*place)]) for token_id, token, place in parts]

    def encode_answer(self, text: str) -> list[int]:
        """Encode text as the model would write it, without special tokens around it; raises as `encode`."""
        if self._decoding is self._backend:
            return self.encode(text, add_special_tokens=False)
        first, unknown = self._unknown_ids
        with _encoding(text):
            found = self._decoding.encode(text, add_special_tokens=False).ids
        return [token_id if token_id < first else unknown for token_id in found]

    def _numbered(self, token_id: int, token: str, text: str) -> int:
        """The id of a piece: unknown text may be a piece all the same, one that SentencePiece has for answers alone."""
        first, unknown = self._unknown_ids
        if token_id != unknown:
            return token_id if token_id < first else unknown
        if token == self._backend.id_to_token(unknown) and self._backend.normalizer is not None:
            token = self._backend.normalizer.normalize_str(text)
        hidden = self._backend.token_to_id(HIDDEN + token)
        return unknown if hidden is None else hidden

    def encoding(self, text: str, pair: str | None = None, *, add_special_tokens: bool = True) -> "tokenizers.Encoding":
        """Encode a text, or two that are read together: ids, segments, and offsets in characters. Errors as `encode`.

        A special token spelt out in a text becomes that token, as in transformers.
        """
        with _encoding(text if pair is None else (text, pair)):
            return self._backend.encode(text, pair, add_special_tokens=add_special_tokens)

    @property
    def continuing_subword_prefix(self) -> str:
        """What tokens begin with that go on with a word, such as ##; "" where they are not marked."""
        return getattr(self._backend.model, "continuing_subword_prefix", None) or ""

    def num_special_tokens(self, *, is_pair: bool) -> int:
        """Tokens that are put around a text, or around and between two."""
        return self._backend.num_special_tokens_to_add(is_pair)

    def with_special_tokens(
        self, first: "tokenizers.Encoding", second: "tokenizers.Encoding | None" = None
    ) -> "tokenizers.Encoding":
        """Put special tokens around one or two texts that were encoded without them."""
        return self._backend.post_process(first, second, add_special_tokens=True)

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> tuple[list[int], str | None]:
        """Encode a text given in parts; a part that is marked True is ordinary text, even if it spells a token.

        Nothing is added around the text. Parts are encoded one by one, so no token spans two parts.

        Returns:
            The ids, and the first marked part that still became a token of that name, or None.
        """
        ids: list[int] = []
        forged = None
        for number, (part, is_ordinary) in enumerate(parts):
            encode = self._encode_ordinary if is_ordinary else self._encode_plainly
            found = self._encode_inside(part, encode) if number > 0 or is_ordinary else encode(part)
            if is_ordinary and forged is None and self.id_of(part) in found:
                forged = part
            ids += found
        return ids, forged

    def encode_inside(self, text: str) -> list[int]:
        """Encode text as in the middle of a text: without the space that some tokenizers prepend."""
        return self._encode_inside(text, self._encode_plainly)

    def _encode_inside(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        # No tokenizer adds anything after a line break.
        line_break, behind = self._encode_plainly("\n"), encode("\n" + text)
        return behind[len(line_break) :] if behind[: len(line_break)] == line_break else encode(text)

    def _encode_plainly(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False)

    def _encode_ordinary(self, text: str) -> list[int]:
        """Encode with the tokenizer's model only, which does not know added tokens: the library matches those first."""
        backend = self._backend
        with _encoding(text):
            if backend.normalizer is not None:
                text = backend.normalizer.normalize_str(text)
            words = [(text, None)] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(text)
            return [token.id for word, _ in words for token in backend.model.tokenize(word)]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Decode ids to text; ids without a token are left out.

        Same text as the `tokenizers` library, except where byte tokens such as <0xE2> do not form UTF-8:
        there the library replaces the whole run of bytes, valid characters included. This method, like
        SentencePiece (`ProcessBytePieces`), replaces only bytes that are not part of a character, so that a
        character can be shown before the run of bytes ends. For the same reason ▁ spelled in byte tokens stays ▁,
        where the library turns it into a space if `tokenizer.json` replaces ▁ after it joins bytes.
        """
        decoder = StreamDecoder(self, skip_special_tokens=skip_special_tokens)
        return "".join([decoder.push(id_) for id_ in ids]) + decoder.flush()

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

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, after: Sequence[int] = ()) -> None:
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


def _backend(path: str | os.PathLike[str]) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception for everything
        raise BundleCorruptError(
            f"Cannot read the tokenizer {os.fspath(path)}: {_one_line(error)}; make the bundle again"
        ) from error


@contextlib.contextmanager
def _encoding(text: str | tuple[str, str]) -> Iterator[None]:
    """Translate the library's errors for a text."""
    try:
        yield
    except TypeError as error:
        raise MisuseError(f"Cannot encode {text!r:.80}: text must be a string of Unicode characters") from error
    except Exception as error:  # the library raises bare Exception for everything
        raise BundleCorruptError(
            f"The tokenizer cannot encode this text: {_one_line(error)}; make the bundle again"
        ) from error


def _visible(text: str) -> str:
    return _ESCAPED_BYTE.sub("\ufffd", text)


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
