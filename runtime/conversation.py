"""A chat that keeps its cache: each turn prefills only what the cache does not hold yet."""

from collections.abc import Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self

from piston.runtime.completion import Completion
from piston.runtime.decode import check_fits
from piston.runtime.generation import run
from piston.runtime.sampling import Sampling

if TYPE_CHECKING:
    from piston.runtime.model import LanguageModel


class Conversation:
    """Messages so far and the slot that holds their keys and values.

    The template renders the whole conversation each turn; the cache is rewound to the longest prefix it shares with
    the rendering, so a template that rewrites earlier turns costs time and never correctness.
    """

    def __init__(self, model: "LanguageModel", *, system: str | None, sampling: Sampling) -> None:
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.sampling = sampling
        self.completion: Completion | None = None
        self._model = model
        self._slot = model.engine.cache.admit()
        self._cached: list[int] = []  # the tokens whose keys and values the slot holds

    def say(self, text: str) -> Iterator[str]:
        """Add the user's message and stream the answer.

        Closing the iterator, or an interrupt, ends the answer there: what was said stays in the conversation.
        A message that is refused (too long, or by the template) is taken back.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self._model.render(self.messages)
            generation = self._model.prepare(ids, self.sampling)
            check_fits(self._model.engine, generation.request)
        except Exception:
            self.messages.pop()
            raise
        request = generation.request
        request.slot, request.keep_slot = self._slot, True
        self._rewind(ids)
        try:
            for _, piece in run(self._model.engine, [generation]):
                if piece:
                    yield piece
        finally:
            held = int(self._model.engine.cache.lengths[self._slot])
            self._cached = (ids + request.output_ids)[:held]
            self.completion = generation.completion()
            self.messages.append({"role": "assistant", "content": self.completion.text})

    def close(self) -> None:
        """Give the slot back."""
        self._model.engine.cache.release(self._slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rewind(self, ids: list[int]) -> None:
        pairs = zip(self._cached, ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # At least one token must be prefilled: its logits are the first of the answer.
        self._model.engine.cache.rewind(self._slot, min(shared, len(ids) - 1))
