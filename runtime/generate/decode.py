"""The decode loop: prefill once, then step all rows together until each is finished. It knows ids only, no text."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from piston.core.errors import EmptyPromptError, PromptTooLongError
from piston.runtime.backends.engine import Engine, Logits
from piston.runtime.generate.device_loop import DeviceRuns
from piston.runtime.generate.speculation import Speculator
from piston.runtime.sampling.sampler import FinishReason, Pick, RowSampler


@dataclass(slots=True)
class Spent:
    """Seconds that one row waited for a slot, was prefilled, and had its tokens picked."""

    queue: float = 0.0
    prefill: float = 0.0
    sampling: float = 0.0


@dataclass(slots=True, eq=False)
class Request:
    """One row to generate.

    A `slot` that is given holds the first positions of the prompt already; only the rest is prefilled. With
    `keep_slot` the slot stays admitted afterwards, for whoever goes on from it; it holds all tokens but the last.
    `cancel` ends the row after the token at hand. A `speculator` has its guesses verified, several tokens a step.
    """

    prompt_ids: list[int]
    sampler: RowSampler
    slot: int | None = None
    keep_slot: bool = False
    speculator: Speculator | None = None
    num_prefilled: int = 0
    spent: Spent = field(default_factory=Spent)
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
    runs = DeviceRuns(engine)
    began = time.perf_counter()
    try:
        while waiting or active:
            if waiting and (waiting[0].slot is not None or engine.cache.num_free or not active):
                request = waiting.popleft()
                request.spent.queue = time.perf_counter() - began
                slot = request.slot if request.slot is not None else engine.cache.admit()
                active[slot] = request
                picked = {slot: _prefill(engine, slot, request)}
            else:
                picked = _chosen(runs, active) or _advance(engine, active)
            # All picks first: whoever takes the tokens may run the engine, which overwrites the logits.
            for slot, tokens in picked.items():
                for token in tokens:
                    token.request.output_ids.append(token.pick.token_id)
                    yield token
                    if token.finish_reason is not None or token.request.is_cancelled:
                        _retire(engine, active, slot)
                        break
    finally:
        runs.close()
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


def _prefill(engine: Engine, slot: int, request: Request) -> list[Token]:
    rest = request.prompt_ids[int(engine.cache.lengths[slot]) :]
    request.num_prefilled = len(rest)
    began = time.perf_counter()
    logits = engine.prefill(slot, rest)
    request.spent.prefill = time.perf_counter() - began
    return [_pick(request, logits[0])]


def _chosen(runs: DeviceRuns, active: dict[int, Request]) -> dict[int, list[Token]]:
    """One token for each row, chosen on the device; none where it cannot, or where some row's guesses are verified."""
    if any(row.speculator is not None and row.speculator.verification.most_tokens != 0 for row in active.values()):
        return {}
    picks = runs.step(active) or {}
    return {slot: [Token(active[slot], pick, active[slot].sampler.finish_reason)] for slot, pick in picks.items()}


def _advance(engine: Engine, active: dict[int, Request]) -> dict[int, list[Token]]:
    """One token for each row that has no guess worth verifying, in one step; one or more for each that has."""
    picked: dict[int, list[Token]] = {}
    for slot, request in active.items():
        if draft := _draft(engine, slot, request, len(active) - 1):
            picked[slot] = _verify(engine, slot, request, draft)
    if rest := {slot: request.output_ids[-1] for slot, request in active.items() if slot not in picked}:
        began = time.perf_counter()
        rows = engine.step(rest)
        seconds = time.perf_counter() - began
        for slot, logits in rows.items():
            picked[slot] = [_pick(active[slot], logits)]
            if (speculator := active[slot].speculator) is not None and slot == next(iter(rows)):
                speculator.verification.cost.observe(len(rows), seconds)
    return picked


def _draft(engine: Engine, slot: int, request: Request, num_others: int) -> list[int]:
    speculator, num_left = request.speculator, request.sampler.sampling.max_tokens - len(request.output_ids)
    if speculator is None:
        return []
    if speculator.verification.most_tokens is None and num_left > 1:
        speculator.verification.probe(engine, slot, request.prompt_ids + request.output_ids)
    return speculator.draft(num_left, num_others)


def _verify(engine: Engine, slot: int, request: Request, draft: list[int]) -> list[Token]:
    """Run the last token and the guess behind it at once; pick as long as the guess is right, and once more."""
    assert request.speculator is not None
    start, began = int(engine.cache.lengths[slot]), time.perf_counter()
    rows = engine.prefill(slot, [request.output_ids[-1], *draft], num_logits=len(draft) + 1)
    request.speculator.verification.cost.observe(len(draft) + 1, time.perf_counter() - began)
    picked: list[Token] = []
    for logits, guess in zip(rows, [*draft, None], strict=True):
        picked.append(_pick(request, logits))
        if picked[-1].finish_reason is not None or picked[-1].pick.token_id != guess:
            break
    engine.cache.rewind(slot, start + len(picked))
    return picked


def _pick(request: Request, logits: Logits) -> Token:
    began = time.perf_counter()
    pick = request.sampler.pick(logits)
    if request.speculator is not None:
        request.speculator.observe(pick.token_id)
    request.spent.sampling += time.perf_counter() - began
    return Token(request, pick, request.sampler.finish_reason)


def _retire(engine: Engine, active: dict[int, Request], slot: int) -> None:
    request = active.pop(slot)
    if not request.keep_slot:
        engine.cache.release(slot)
    elif (held := len(request.prompt_ids) + len(request.output_ids) - 1) < engine.cache.lengths[slot]:
        engine.cache.rewind(slot, held)  # cancelled at a token behind which more were verified
