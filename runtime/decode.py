"""The decode loop: prefill once, then step all rows together until each is finished. It knows ids only, no text."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from piston.runtime.engine import Engine
from piston.runtime.errors import EmptyPromptError, PromptTooLongError
from piston.runtime.row_sampler import FinishReason, Pick, RowSampler


@dataclass(slots=True, eq=False)
class Request:
    """One row to generate.

    A `slot` that is given holds the first positions of the prompt already; only the rest is prefilled. With
    `keep_slot` the slot stays admitted afterwards, for whoever goes on from it. `cancel` ends the row after the
    token at hand.
    """

    prompt_ids: list[int]
    sampler: RowSampler
    slot: int | None = None
    keep_slot: bool = False
    num_prefilled: int = 0
    output_ids: list[int] = field(default_factory=list)
    is_cancelled: bool = False

    def cancel(self) -> None:
        """End this row; the others go on."""
        self.is_cancelled = True


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token; `finish_reason` is set on the last one of its row."""

    request: Request
    pick: Pick
    finish_reason: FinishReason | None


def decode(engine: Engine, requests: Iterable[Request]) -> Iterator[Token]:
    """Generate every request; those for which no slot is free wait until one is released.

    Slots are given back however the loop ends, closing the generator included.

    Raises:
        EmptyPromptError: a prompt without tokens; nothing was run.
        PromptTooLongError: prompt and max_tokens exceed the capacity; nothing was run.
        MisuseError: every slot is held by others, such as open conversations.
    """
    waiting = deque(requests)
    for request in waiting:
        check_fits(engine, request)
    active: dict[int, Request] = {}
    try:
        while waiting or active:
            if waiting and (waiting[0].slot is not None or engine.cache.num_free or not active):
                request = waiting.popleft()
                slot = request.slot if request.slot is not None else engine.cache.admit()
                active[slot] = request
                rest = request.prompt_ids[int(engine.cache.lengths[slot]) :]
                request.num_prefilled = len(rest)
                rows = {slot: engine.prefill(slot, rest)[0]}
            else:
                rows = engine.step({slot: request.output_ids[-1] for slot, request in active.items()})
            # All picks first: whoever takes the tokens may run the engine, which overwrites the logits.
            picks = {slot: active[slot].sampler.pick(logits) for slot, logits in rows.items()}
            for slot, pick in picks.items():
                request = active[slot]
                request.output_ids.append(pick.token_id)
                yield Token(request, pick, request.sampler.finish_reason)
                if request.sampler.finish_reason is not None or request.is_cancelled:
                    _retire(engine, active, slot)
    finally:
        for slot in list(active):
            _retire(engine, active, slot)


def check_fits(engine: Engine, request: Request) -> None:
    """Refuse, before any work, a prompt that is empty or that with max_tokens exceeds the engine's capacity."""
    num_prompt, num_new = len(request.prompt_ids), request.sampler.sampling.max_tokens
    if num_prompt == 0:
        raise EmptyPromptError("The prompt has no tokens; give at least one character.")
    capacity = engine.cache.capacity
    if num_prompt + num_new > capacity:
        raise PromptTooLongError(
            f"The prompt has {num_prompt:,} tokens and max_tokens is {num_new:,}, together {num_prompt + num_new:,}, "
            f"but the engine holds {capacity:,}; shorten the prompt, lower max_tokens or load with a larger max_length."
        )


def _retire(engine: Engine, active: dict[int, Request], slot: int) -> None:
    if not active.pop(slot).keep_slot:
        engine.cache.release(slot)
