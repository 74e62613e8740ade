"""Calibration rows: from files of text, conversations or token ids to one array, and its hash for the manifest."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.data_files import has_records, read_bytes
from piston.core.errors import MisuseError
from piston.data.documents import Document, parse_documents
from piston.data.noise import code_points, is_noise
from piston.data.packing import pack
from piston.data.python_texts import python_texts
from piston.runtime.bundle import Bundle
from piston.runtime.text.tokenizer import Tokenizer

DEFAULT_LENGTH = 512  # tokens
BUILTIN = "builtin"  # the texts beside this file, then those of the Python that runs
TEXTS = Path(__file__).parent / "texts"
CHATS = "chat.jsonl"  # of them, the one that needs a chat template


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """How many rows, how long, in which order; `field` of a record (an object, a table's row) holds its document.

    Beyond `num_rows` there are `num_apart` more, which the result is checked on. With `takes_fewer` the data may have
    fewer rows than `num_rows`, down to one.
    """

    num_rows: int = 64
    takes_fewer: bool = False
    num_apart: int = 0
    seq_len: int | None = None  # None: DEFAULT_LENGTH, or the model's positions where it has fewer
    seed: int = 0
    field: str | None = None


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file that rows came from."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Token ids int64 [rows, seq_len], no row twice, and where they came from."""

    ids: NDArray[np.int64]
    files: tuple[DataFile, ...]
    seed: int

    @property
    def sha256(self) -> str:
        """Of shape and ids, the same for any integer type and byte order."""
        return hash_rows(self.ids)

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file by name."""
        return {file.name: file.sha256 for file in self.files}

    def to_json(self) -> dict[str, Any]:
        """What the manifest says of them."""
        num_rows, seq_len = self.ids.shape
        files = [{"name": file.name, "sha256": file.sha256} for file in self.files]
        return {"rows": num_rows, "seq_len": seq_len, "seed": self.seed, "sha256": self.sha256, "files": files}


def hash_rows(ids: NDArray[np.integer]) -> str:
    """SHA-256 of the shape in text and the ids as 64-bit little-endian integers."""
    shape = "x".join(map(str, ids.shape))
    return hashlib.sha256(shape.encode() + b"\n" + np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()


def load_rows(sources: Sequence[str | Path], model: Bundle, options: RowOptions | None = None) -> Rows:
    """Read data files, or BUILTIN for the texts that come with Piston, and pack them for a model directory.

    Raises:
        MisuseError: a file is missing, empty, not what its name says, or noise; ids outside the vocabulary; rows longer
            than the model's positions; too few tokens for the rows.
        TemplateError: the chat template refuses a conversation.
    """
    options = with_length(options or RowOptions(), model)
    _check_options(options, model)
    tokenizer, template = model.tokenizer(), model.chat_template()
    documents, files = list[Document](), list[DataFile]()
    for path, data in _files(sources, has_template=template is not None):
        found = parse_documents(data, path, field=options.field, template=template)
        _check_documents(found, path, model.manifest.model.vocab_size)
        documents += found
        files.append(DataFile(path.name, hashlib.sha256(data).hexdigest()))
    if options.field is not None and not any(has_records(Path(file.name)) for file in files):
        raise MisuseError(f"The data has no records with a field {options.field!r}, but plain text; leave --field out.")
    # An encoder reads a text in its whole frame; a decoder reads text that goes on.
    is_framed = not model.manifest.cache.states
    ids = _packed(documents, tokenizer, options, is_framed=is_framed)
    _check_ids(ids, "The tokenizer's output", model.manifest.model.vocab_size)
    return Rows(ids=ids, files=tuple(files), seed=options.seed)


def chat_rows(model: Bundle, seq_len: int, num_rows: int = 4) -> NDArray[np.int64] | None:
    """Rows [num_rows, seq_len] that each begin with a conversation, or None where the model has no chat template.

    The token that opens a conversation has activations of its own when it comes first, and rows cut from text hardly
    ever begin with it.
    """
    tokenizer, template = model.tokenizer(), model.chat_template()
    if template is None:
        return None
    path = TEXTS / CHATS
    documents = parse_documents(read_bytes(path), path, template=template)
    texts = [document.content for document in documents if isinstance(document.content, str)]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    rows = []
    for first in range(num_rows):
        row = list[int]()
        for number in itertools.count(first):
            row += encoded[number % len(encoded)]
            if len(row) >= seq_len:
                break
        rows.append(row[:seq_len])
    return np.array(rows, np.int64)


def _files(sources: Sequence[str | Path], *, has_template: bool) -> Iterator[tuple[Path, bytes]]:
    """Each file with its bytes; a text of Python's has a name in place of a path."""
    if not sources:
        raise MisuseError(f"No data was given; name a file, or {BUILTIN!r} for the texts that come with Piston.")
    for source in sources:
        if str(source) != BUILTIN:
            yield Path(source), read_bytes(Path(source))
            continue
        for path in (*sorted(TEXTS.glob("*.txt")), *([TEXTS / CHATS] if has_template else [])):
            yield path, read_bytes(path)
        for name, data in python_texts():
            yield Path(name), data


def _packed(
    documents: list[Document], tokenizer: Tokenizer, options: RowOptions, *, is_framed: bool
) -> NDArray[np.int64]:
    assert options.seq_len is not None
    is_text = any(isinstance(document.content, str) for document in documents)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    wanted = options.num_rows + options.num_apart
    packed = pack(
        documents,
        encode,
        num_rows=wanted,
        seq_len=options.seq_len,
        seed=options.seed,
        prefix=tokenizer.frame[0] if is_text else (),
        suffix=tokenizer.frame[1] if is_text and is_framed else (),
    )
    if len(packed.ids) < (options.num_apart + 1 if options.takes_fewer else wanted):
        apart = f" and {options.num_apart} to check the result on" if options.num_apart else ""
        other = ", or give --check-data" if options.num_apart else ""
        raise MisuseError(
            f"The data has {packed.num_tokens:,} tokens, enough for {len(packed.ids):,} different rows of "
            f"{options.seq_len:,}; {options.num_rows:,} rows{apart} ({wanted * options.seq_len:,} tokens) were "
            f"asked for. Add data, or ask for fewer or shorter rows{other}."
        )
    return packed.ids


def with_length(options: RowOptions, model: Bundle) -> RowOptions:
    """The options with the default length where none was given."""
    if options.seq_len is not None:
        return options
    return dataclasses.replace(options, seq_len=min(DEFAULT_LENGTH, model.manifest.model.max_positions))


def _check_options(options: RowOptions, model: Bundle) -> None:
    positions = model.manifest.model.max_positions
    if options.num_rows < 1:
        raise MisuseError(f"{options.num_rows} calibration rows were asked for; at least 1 is needed.")
    if options.seed < 0:
        raise MisuseError(f"The seed of the rows is {options.seed}; it must be at least 0.")
    assert options.seq_len is not None
    if not 2 <= options.seq_len <= positions:  # noqa: PLR2004
        raise MisuseError(
            f"Calibration rows of {options.seq_len:,} tokens were asked for; {model.manifest.model.name} takes 2 to "
            f"{positions:,} positions."
        )


def _check_documents(documents: list[Document], path: Path, vocab_size: int) -> None:
    """Refuse noise and ids that the model does not know."""
    text = "".join(item.content for item in documents if isinstance(item.content, str))
    arrays = [item.content for item in documents if not isinstance(item.content, str)]
    ids = np.concatenate(arrays) if arrays else np.empty(0, np.int64)
    _check_ids(ids, str(path), vocab_size)
    for symbols, kind in ((code_points(text), "characters"), (ids, "token ids")):
        if is_noise(symbols):
            raise MisuseError(
                f"{path} looks like noise: its {kind} pack no better than in random order. Ranges measured on it would "
                "fit nothing that the model is used for; give text of that kind."
            )


def _check_ids(ids: NDArray[np.int64], what: str, vocab_size: int) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise MisuseError(
            f"{what} has token ids from {ids.min():,} to {ids.max():,}; the model knows 0 to {vocab_size - 1:,}. "
            "Encode it with this model's tokenizer."
        )
