"""A chat that keeps its cache: each turn prefills only tokens that the cache does not hold yet."""

import inspect
import time
import weakref
from collections.abc import Generator
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self

from piston.core.arguments import checked_arguments
from piston.core.errors import MisuseError
from piston.runtime.generate.completion import Completion
from piston.runtime.generate.generation import Generation, run
from piston.runtime.generate.request import check_fits
from piston.runtime.sampling.params import SamplingParams

if TYPE_CHECKING:
    from piston.runtime.model import LanguageModel


class Conversation:
    """The messages so far and the slot that holds their keys and values.

    The template renders the whole conversation each turn; the cache is rewound to the longest prefix it shares with
    the rendering, so a template that rewrites earlier turns costs time but stays correct.
    """

    def __init__(
        self,
        model: "LanguageModel",
        *,
        system: str | None,
        sampling: SamplingParams,
        sanitize_control_tokens: bool = True,
    ) -> None:
        if sampling.n != 1 or sampling.echo:
            raise MisuseError("A conversation gives one answer without echo; leave n and echo out.")
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.sampling = sampling
        self.completion: Completion | None = None  # the last answer so far
        self._model = model
        self._sanitize_control_tokens = sanitize_control_tokens
        self._slot: int | None = model.engine.cache.admit()
        self._cached: list[int] = []  # the tokens whose keys and values the slot holds
        # The last answer. Only the iterator of `say` keeps it alive, so a forgotten iterator does not block.
        self._steps: weakref.ref[Generator[tuple[Generation, str]]] | None = None

    @checked_arguments
    def say(self, text: str) -> Generator[str]:
        """Send a user message and stream the answer.

        Closing the iterator, or an interrupt, ends the answer there. Message and answer are appended to `messages`
        together when the answer ends, so a message that is refused (too long, or by the template) or gets no token is
        not recorded.

        Raises:
            MisuseError: the conversation is closed, an answer is still being streamed, or the message is too long.
            TemplateError: the checkpoint has no template, or it refuses the messages.
        """
        if self._slot is None:
            raise MisuseError("The conversation is closed; start a new one.")
        if self._streaming() is not None:
            raise MisuseError(
                "The last answer is still being streamed; read it to its end or close() its iterator first."
            )
        message = {"role": "user", "content": text}
        began = time.perf_counter()
        messages = [*self.messages, message]
        ids = self._model.render(messages, sanitize_control_tokens=self._sanitize_control_tokens)
        generation = self._model.prepare(ids, self.sampling, began)
        check_fits(self._model.engine, generation.request)
        slot, request = self._slot, generation.request
        request.slot, request.keep_slot = slot, True
        self._rewind(slot, ids)
        self.completion = None
        try:
            steps = run(self._model.engine, [generation])
            self._steps = weakref.ref(steps)
            for _, piece in steps:
                if piece:
                    yield piece
        finally:
            self._end_answer()
            held = int(self._model.engine.cache.lengths[slot])
            self._cached = (ids + request.output_ids)[:held]
            if request.output_ids:
                self.completion = generation.completion()
                self.messages += [message, {"role": "assistant", "content": self.completion.text}]

    def close(self) -> None:
        """End an answer that is still being streamed and release the slot."""
        if self._slot is not None:
            self._end_answer()
            self._model.engine.cache.release(self._slot)
            self._slot = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _streaming(self) -> Generator[tuple[Generation, str]] | None:
        """The steps of an answer that has not ended."""
        steps = None if self._steps is None else self._steps()
        return None if steps is None or inspect.getgeneratorstate(steps) == inspect.GEN_CLOSED else steps

    def _end_answer(self) -> None:
        if (steps := self._streaming()) is not None:
            steps.close()

    def _rewind(self, slot: int, ids: list[int]) -> None:
        pairs = zip(self._cached, ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # At least one token must be prefilled: its logits are the first of the answer.
        shared = min(shared, len(ids) - 1)
        self._cached = self._cached[
            :shared
        ]  # before the rewind: an interrupt between the two must not leave extra tokens
        self._model.engine.cache.rewind(slot, shared)
