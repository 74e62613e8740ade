"""Documents of any length to rows of one length: cut, shuffled by a seed, encoded and put end to end."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from piston.data.documents import Document

Ids = NDArray[np.int64]
Content = str | Ids
CHARACTERS_PER_TOKEN = 4  # of English, about: a piece of text makes about one row


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows, and how much was encoded to fill them."""

    ids: Ids  # (rows, seq_len); fewer rows than asked for if the documents ran out
    num_tokens: int


def pack(  # noqa: PLR0913
    documents: Sequence[Document],
    encode: Callable[[str], Sequence[int]],
    *,
    num_rows: int,
    seq_len: int,
    seed: int,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> Packed:
    """Fill at most `num_rows` different rows of `seq_len` tokens from pieces of the documents in random order.

    Long documents are cut into pieces of about a row, so that few rows still see many places. Nothing is encoded
    beyond what is needed. No piece and no row is used twice.

    Args:
        documents: what to take from.
        encode: text to ids, without special tokens.
        num_rows: rows wanted.
        seq_len: tokens of a row, prefix and suffix included.
        seed: of the order.
        prefix: what every row begins with, such as BOS; a row that has it already is left alone.
        suffix: what every row ends with, such as a separator.
    """
    wanted, seq_len = seq_len, seq_len - len(suffix)
    pieces = [piece for document in documents for piece in _pieces(document.content, seq_len)]
    order = np.random.default_rng(seed).permutation(len(pieces))
    rows: dict[bytes, Ids] = {}
    used: set[bytes] = set()
    waiting, num_tokens = list[int](), 0
    for piece in (pieces[index] for index in order):
        key = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece.tobytes()
        if key in used:
            continue
        used.add(key)
        ids = encode(piece) if isinstance(piece, str) else piece.tolist()
        num_tokens += len(ids)
        waiting += ids
        while len(row := _row(waiting, seq_len, prefix)) == seq_len:
            taken = seq_len if waiting[: len(prefix)] == list(prefix) else seq_len - len(prefix)
            del waiting[:taken]
            rows.setdefault(row.tobytes(), np.array([*row, *suffix], np.int64))
            if len(rows) == num_rows:
                return Packed(np.stack(list(rows.values())), num_tokens)
    return Packed(np.stack(list(rows.values())) if rows else np.empty((0, wanted), np.int64), num_tokens)


def _row(waiting: list[int], seq_len: int, prefix: Sequence[int]) -> Ids:
    """The next row, shorter than seq_len if too few tokens wait."""
    start = [] if waiting[: len(prefix)] == list(prefix) else list(prefix)
    return np.array([*start, *waiting[: seq_len - len(start)]], np.int64)


def _pieces(content: Content, seq_len: int) -> Iterator[Content]:
    if isinstance(content, str):
        return _cut_text(content, seq_len * CHARACTERS_PER_TOKEN)
    return iter([content[start : start + seq_len] for start in range(0, len(content), seq_len)])


def _cut_text(text: str, length: int) -> Iterator[str]:
    """Pieces of at most `length` characters: cut at the last line end, else the last blank, of the second half."""
    start = 0
    while len(text) - start > length:
        middle, end = start + length // 2, start + length
        cut = text.rfind("\n", middle, end) + 1 or text.rfind(" ", middle, end) or end
        cut = end if cut < middle else cut
        yield text[start:cut]
        start = cut
    yield text[start:]
