"""What the models of encoder tasks have in common: texts become rows of tokens, rows become batches, batches outputs.

A row is what the tokenizer makes of a text, or of two that are read together, with its special tokens. Inputs are read
in chunks, so that memory does not grow with their number.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.hashing import Hashing
from piston.core.bundle.interface import ENCODER
from piston.core.data_files import check_text
from piston.core.errors import BundleCorruptError, MisuseError, NotFiniteError, PromptTooLongError
from piston.core.machine import num_cores
from piston.runtime.bundle import Bundle
from piston.runtime.ragged import Row, batches, padded

if TYPE_CHECKING:
    from tokenizers import Encoding

    from piston.core.bundle.manifest import EngineSpec, Manifest
    from piston.runtime.backends.session import Session
    from piston.runtime.text.tokenizer import Tokenizer, TokenRow

    EncodedRow = Encoding | TokenRow  # of one text or two, with what a model puts around them

Array = NDArray[np.float32]
Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 512  # inputs that are encoded at once
# Of a run on a CPU: what a layer makes of more does not stay in the cores' caches. Runs of 2,048 tokens on two cores
# take 5 to 10 % more time than runs of 512 (MiniLM; docs/performance.md).
TOKENS_PER_THREAD = 256


class EncoderModel:
    """A loaded bundle of an encoder task; a context manager that frees the engine.

    Args:
        manifest: of the bundle, or of a model directory.
        session: its graph.
        tokenizer: its tokenizer.
        max_length: tokens of a row, special tokens included.
        max_batch: rows of that length that are run at once; of shorter ones more are.

    Attributes:
        batch_tokens: tokens of one run at most, padding included.
    """

    TASK: str

    def __init__(
        self, manifest: "Manifest", session: "Session", tokenizer: "Tokenizer", *, max_length: int, max_batch: int
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_batch = max_batch
        self.batch_tokens = max_batch * max_length
        self.target = ""  # of the engine, as the bundle names it
        self.remarks: tuple[str, ...] = ()  # where `load` deviated from what the bundle was built for, and why
        self._session = session
        (self._output,) = manifest.graphs[ENCODER].outputs
        width = self._output.shape[-1]
        assert isinstance(width, int)
        self.width = width  # numbers of an output

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens that every row has around its texts, besides special ones."""
        return 0

    def outputs(self, rows: Sequence[Row], types: Sequence[Row] | None = None) -> Iterator[tuple[int, Array]]:
        """The graph's output for each row of token ids, with the row's index, batch by batch from the shortest row.

        An output is float32 [width], or [tokens, width] of a graph that has one for every token. `types` are the
        segments of the rows' tokens. Raises EngineError, for numbers that are not finite NotFiniteError.
        """
        is_per_token = len(self._output.shape) > 2  # noqa: PLR2004 - [batch, width]
        for batch in batches([len(row) for row in rows], tokens=self.batch_tokens):
            segments = None if types is None else [types[index] for index in batch]
            found = self._session.run(padded([rows[index] for index in batch], segments))[self._output.name]
            for index, whole in zip(batch, found, strict=True):
                output = whole[: len(rows[index])] if is_per_token else whole
                if not np.isfinite(output).all():
                    raise NotFiniteError(
                        f"{self.manifest.model.name} computes NaN or infinity on {self.target or 'this engine'} for a "
                        f"text of {len(rows[index])} tokens; build it for ort-cpu, or for a GPU with --dtype bf16."
                    )
                yield index, output

    def run(self, rows: "Sequence[EncodedRow]") -> list[Array]:
        """The output for each row, in their order; see `outputs`."""
        found: dict[int, Array] = {}
        for index, output in self.outputs([row.ids for row in rows], [row.type_ids for row in rows]):
            found[index] = output.copy()
        return [found[index] for index in range(len(rows))]

    def each(
        self,
        items: Sequence[Item],
        encoded: "Callable[[int, Item], EncodedRow]",
        decoded: "Callable[[int, EncodedRow, Array], Result]",
    ) -> list[Result]:
        """The result of each item: encoded to a row, run, and decoded from its output; both get the item's index."""
        results: list[Any] = [None] * len(items)
        for start in range(0, len(items), CHUNK):
            rows = [encoded(index, items[index]) for index in range(start, min(start + CHUNK, len(items)))]
            for place, output in self.outputs([row.ids for row in rows], [row.type_ids for row in rows]):
                results[start + place] = decoded(start + place, rows[place], output)
        return results

    def row(
        self, text: str, pair: str | None = None, *, what: str = "The text", max_tokens: int | None = None
    ) -> "EncodedRow":
        """What the graph reads of a text, or of two that are read together; arguments and errors as of `encoding`."""
        return self.encoding(text, pair, what=what, max_tokens=max_tokens)

    def encoding(
        self, text: str, pair: str | None = None, *, what: str = "The text", max_tokens: int | None = None
    ) -> "Encoding":
        """Encode a text, or two that are read together.

        Args:
            text: not empty.
            pair: the second text, not empty either.
            what: begins error messages.
            max_tokens: cut longer rows to so many, of two texts the longer one first, as transformers does; None: rows
                of more than `max_length` tokens are refused.

        Raises:
            MisuseError: a text is empty or not a string of Unicode characters, or max_tokens leaves none of it.
            PromptTooLongError: the row is too long.
        """
        texts = (text,) if pair is None else (text, pair)
        row = self._encoding(texts, what)
        limit = self.max_length if max_tokens is None else min(max_tokens, self.max_length)
        if len(row) <= limit:
            return row
        if max_tokens is None:
            raise PromptTooLongError(
                f"{what} has {len(row)} tokens; {self.manifest.model.name} reads up to {self.max_length}. Shorten "
                "it, or let its end be cut off (truncate)."
            )
        parts = [self.tokenizer.encoding(each, add_special_tokens=False) for each in texts]
        room = limit - self.tokenizer.num_special_tokens(is_pair=pair is not None)
        if room < len(parts):
            raise MisuseError(f"{what} cannot be cut to {limit} tokens; special tokens take {limit - room} of them.")
        for part, size in zip(parts, longest_first([len(part) for part in parts], room), strict=True):
            part.truncate(size)
        return self.tokenizer.with_special_tokens(parts[0], *parts[1:])

    def windows(self, *texts: str, what: str, length: int, stride: int) -> "list[Encoding]":
        """Rows of at most `length` tokens that read the last of one or two texts piece by piece.

        `stride` tokens of a piece are the first of the next one, as transformers' return_overflowing_tokens.

        Raises:
            MisuseError: as `row`, or `stride` is not below the tokens of the text that fit into a row.
        """
        if stride < 0:
            raise MisuseError(f"stride is {stride}; it must be at least 0.")
        whole = self._encoding(texts, what)
        if len(whole) <= length:
            return [whole]
        *first, last = (self.tokenizer.encoding(each, add_special_tokens=False) for each in texts)
        room = length - self.tokenizer.num_special_tokens(is_pair=len(texts) > 1) - sum(len(part) for part in first)
        if stride >= room:
            raise MisuseError(
                f"{what} leaves {max(room, 0)} of {length} tokens to each window, and windows overlap by {stride}; "
                "windows must be longer than that: shorten the question, or lower the stride."
            )
        last.truncate(room, stride=stride)
        parts = [[*first, piece] for piece in (last, *last.overflowing)]
        return [self.tokenizer.with_special_tokens(part[0], *part[1:]) for part in parts]

    def _encoding(self, texts: Sequence[str], what: str) -> "Encoding":
        for text in texts:
            check_input(text, what)
        row = self.tokenizer.encoding(*texts)
        if not len(row):
            raise MisuseError(f"{what} has no character that the tokenizer of {self.manifest.model.name} knows.")
        return row

    def close(self) -> None:
        """Free the engine."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Model = TypeVar("Model", bound=EncoderModel)


def check_input(text: str, what: str) -> None:
    """Raise MisuseError for what is no text, or empty."""
    if not isinstance(text, str):
        raise MisuseError(f"{what} is {text!r:.40}; it must be a string.")
    if not text.strip():
        raise MisuseError(f"{what} is empty; leave it out.")
    check_text(text, what)


def longest_first(sizes: Sequence[int], room: int) -> list[int]:
    """Sizes that fit into `room` together: the longer of two is cut to the length of the other, then both alike.

    As `truncation="longest_first"` of tokenizers: of an odd room the longer text gets the token that is left.
    """
    if len(sizes) == 1:
        return [min(sizes[0], room)]
    short, long = sorted(sizes)
    long = min(long, max(short, room - short))
    if short + long > room:
        short, long = room // 2, room - room // 2
    return [short, long] if sizes[0] <= sizes[1] else [long, short]


def open_encoder(
    model_class: type[Model],
    bundle: Bundle,
    *,
    target: str | None = None,
    max_batch: int | None = None,
    max_length: int | None = None,
    threads: int = 0,
) -> Model:
    """Load an engine of a bundle that was opened unverified; arguments and errors as of `piston.runtime.load`."""
    bundle.manifest.require_task(model_class.TASK, bundle.directory)
    hashing = Hashing.begin(bundle.manifest, bundle.directory)
    from piston.runtime.backends.registry import Sizes, candidates, family_of, open_session
    from piston.runtime.loading import open_first, open_verified
    from piston.runtime.memory_budget import MOST_ROWS

    def opened(spec: "EngineSpec") -> Model:
        limit = _number(spec, "max_length")
        length = limit if max_length is None else max_length
        batch = _number(spec, "max_batch") if max_batch is None else max_batch
        if not 2 <= length <= limit or not 1 <= batch <= MOST_ROWS:  # noqa: PLR2004
            raise MisuseError(
                f"max_length {length} and max_batch {batch}: {spec.target} was built for texts of 2 to {limit} tokens, "
                f"and batches of 1 to {MOST_ROWS:,}."
            )
        sizes = Sizes(num_slots=batch, capacity=length, threads=threads)
        parts = open_verified(bundle, spec, sizes, hashing, opening=open_session)
        model = model_class(bundle.manifest, parts.engine, parts.tokenizer, max_length=length, max_batch=batch)
        model.target = spec.target
        if family_of(spec.target) == "ort-cpu":
            model.batch_tokens = min(model.batch_tokens, TOKENS_PER_THREAD * (threads or num_cores()))
        return model

    model, remarks = open_first(candidates(bundle, target), opened)
    model.remarks = remarks
    return model


def labels_in(manifest: "Manifest", width: int) -> tuple[str, ...]:
    """The labels that a manifest names, one for each of `width` logits; raises BundleCorruptError."""
    labels = manifest.settings.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or len(labels) != width:
        raise BundleCorruptError(
            f"The manifest of {manifest.model.name} names {len(labels) if isinstance(labels, list) else 'no'} labels, "
            f"and its graph has {width} logits; make it again."
        )
    return tuple(labels)


def _number(spec: "EngineSpec", name: str) -> int:
    value = spec.requested.get(name)
    if not isinstance(value, int):
        raise BundleCorruptError(f"The manifest states {name} of {spec.target} as {value!r}; build it again.")
    return value
