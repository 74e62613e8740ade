"""Text to token ids and back, over a `tokenizer.json`; whole, or piece by piece while a model writes.

It knows nothing of models or chats. `Tokenizer.decode` uses `StreamDecoder`, so streamed text and decoded text are
always the same.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from piston.core.errors import BundleCorruptError, MisuseError
from piston.core.unicode import check_unicode
from piston.runtime.text.control_tokens import any_of, control_tokens
from piston.runtime.text.stream_decoder import StreamDecoder
from piston.runtime.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

HIDDEN = " "  # begins pieces of a vocabulary that a text never becomes: tokenizer.json writes a space as ▁


class Tokenizer(Vocabulary):
    """Text to ids, ids to text.

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
        super().__init__(answers or backend)
        self._unknown_ids = tuple(unknown_ids)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)

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

    def to_json(self) -> str:
        """The whole tokenizer as `tokenizer.json` holds it."""
        return self._backend.to_str()

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

    def encode_around(self, texts: Sequence[tuple[str, bool]]) -> "TokenRow":
        """Encode texts that follow one another; control tokens in those marked True, which are of others, are text.

        Nothing is added around them. Without such tokens the ids are those of the joined text.

        Raises:
            MisuseError: a control token of others cannot be written as text by this tokenizer.
        """
        own = "\0".join(text for text, is_of_others in texts if not is_of_others)
        control = re.compile(f"({any_of(control_tokens(self.added_tokens, own))})")
        parts = [("", False)]
        for text, is_of_others in texts:
            for number, piece in enumerate(control.split(text) if is_of_others else [text]):
                if number % 2:
                    parts += [(piece, True), ("", False)]
                else:
                    parts[-1] = (parts[-1][0] + piece, False)
        ids, forged = self.encode_parts([part for part in parts if part[0]])
        if forged is not None:
            raise MisuseError(f"A text contains {forged!r}, which this tokenizer cannot encode as text; leave it out.")
        return TokenRow(ids, [self.token_of(token_id) or "" for token_id in ids])

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


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Tokens of a text that was encoded in parts: what models read of a `tokenizers.Encoding`."""

    ids: list[int]
    tokens: list[str]

    @property
    def type_ids(self) -> list[int]:
        """They are all of the first segment."""
        return [0] * len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


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
        for part in text if isinstance(text, tuple) else (text,):
            if isinstance(part, str):
                check_unicode(part, "Cannot encode the text, which")
        raise MisuseError(f"Cannot encode {text!r:.80}: it must be a string of Unicode characters.") from error
    except Exception as error:  # the library raises bare Exception for everything
        raise BundleCorruptError(
            f"The tokenizer cannot encode this text: {_one_line(error)}; make the bundle again"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
