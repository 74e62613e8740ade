"""A chat that keeps its cache: each turn prefills only what the cache does not hold yet."""

import time
from collections.abc import Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self

from piston.core.errors import MisuseError
from piston.runtime.generate.completion import Completion
from piston.runtime.generate.generation import run
from piston.runtime.generate.request import check_fits
from piston.runtime.sampling.params import Sampling

if TYPE_CHECKING:
    from piston.runtime.model import LanguageModel


class Conversation:
    """Messages so far and the slot that holds their keys and values.

    The template renders the whole conversation each turn; the cache is rewound to the longest prefix it shares with
    the rendering, so a template that rewrites earlier turns costs time and never correctness.
    """

    def __init__(self, model: "LanguageModel", *, system: str | None, sampling: Sampling) -> None:
        if sampling.n != 1 or sampling.echo:
            raise MisuseError("A conversation gives one answer and no echo; leave n and echo out.")
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.sampling = sampling
        self.completion: Completion | None = None  # the last answer, as far as it went
        self._model = model
        self._slot: int | None = model.engine.cache.admit()
        self._cached: list[int] = []  # the tokens whose keys and values the slot holds

    def say(self, text: str) -> Iterator[str]:
        """Add the user's message and stream the answer.

        Closing the iterator, or an interrupt, ends the answer there: what was said stays in the conversation.
        A message that is refused (too long, or by the template) or gets no token of an answer is taken back.

        Raises:
            MisuseError: the conversation is closed, or the message too long.
            TemplateError: the checkpoint has no template, or it refuses the messages.
        """
        if self._slot is None:
            raise MisuseError("The conversation is closed; begin another.")
        self.messages.append({"role": "user", "content": text})
        began = time.perf_counter()
        try:
            ids = self._model.render(self.messages)
            generation = self._model.prepare(ids, self.sampling, began)
            check_fits(self._model.engine, generation.request)
        except Exception:
            self.messages.pop()
            raise
        slot, request = self._slot, generation.request
        request.slot, request.keep_slot = slot, True
        self._rewind(slot, ids)
        self.completion = None
        try:
            for _, piece in run(self._model.engine, [generation]):
                if piece:
                    yield piece
        finally:
            held = int(self._model.engine.cache.lengths[slot])
            self._cached = (ids + request.output_ids)[:held]
            if request.output_ids:
                self.completion = generation.completion()
                self.messages.append({"role": "assistant", "content": self.completion.text})
            else:
                self.messages.pop()

    def close(self) -> None:
        """Give the slot back."""
        if self._slot is not None:
            self._model.engine.cache.release(self._slot)
            self._slot = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rewind(self, slot: int, ids: list[int]) -> None:
        pairs = zip(self._cached, ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # At least one token must be prefilled: its logits are the first of the answer.
        self._model.engine.cache.rewind(slot, min(shared, len(ids) - 1))
