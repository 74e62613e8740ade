"""Continuous batching: requests are added and cancelled at any time, and each step generates for all running rows.

A step applies cancellations and deadlines, decodes every running row, and then prefills. With `max_stall` it prefills
one chunk of one prompt, so short that running rows wait no longer than that; without it, whole prompts, one at a time.
It knows token ids only, no text.
"""

import time
from collections import deque
from collections.abc import Iterator

from piston.core.errors import MisuseError
from piston.runtime.backends.engine import Engine, Logits, encode
from piston.runtime.generate.device_loop import DeviceRuns
from piston.runtime.generate.prefix_cache import PrefixCache
from piston.runtime.generate.request import Ended, EndReason, Request, Token, check_fits

# The tokens of a prefill chunk are a multiple of this, however short the stall may be. Fewer cost more for each token;
# and with AMX, own kernels attend more than 16 tokens in other arithmetic than fewer, so short chunks change bits.
LEAST_CHUNK = 64
LOGITS_CHUNK = 64  # where the logits of every position are wanted: bounds what they take


class Scheduler:
    """Schedules requests for the decode loop, the server and benchmarks. One thread at a time may use it.

    Args:
        engine: its free slots are used; slots in use elsewhere are left alone.
        max_stall: seconds that a running row may wait for another row's prompt in one step; None: a whole prompt.
        keep_prefixes: slots of ended rows keep their states, and a later prompt that begins with the same tokens (and
            has the same cache_salt) prefills only the rest.
    """

    def __init__(self, engine: Engine, *, max_stall: float | None = None, keep_prefixes: bool = False) -> None:
        self.engine = engine
        self.max_stall = max_stall
        self.prefixes = PrefixCache(engine.cache) if keep_prefixes else None
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._prefilling: tuple[int, Request] | None = None
        self._device_runs = DeviceRuns(engine)
        self._token_seconds: float | None = None  # of a prefill, the latest measurements weighing most

    @property
    def has_work(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self._waiting or self._running or self._prefilling)

    @property
    def num_running(self) -> int:
        """Number of rows that have a slot."""
        return len(self._running) + (self._prefilling is not None)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of the prompts that wait for a slot."""
        return sum(request.num_given for request in self._waiting)

    def add(self, request: Request) -> None:
        """Queue a request, first come first served.

        Raises:
            EmptyPromptError: the prompt has no tokens.
            PromptTooLongError: prompt and max_tokens exceed the capacity.
        """
        check_fits(self.engine, request)
        request.added_at = time.perf_counter()
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request at the next step, whether it waits or runs."""
        request.cancel()

    def step(self) -> Iterator[Token | Ended]:
        """Generate at least one token for each running row; iterate to the end before the next step.

        Each request ends with a token that has a finish_reason, or with an Ended; one that is cancelled while its token
        is delivered gets no further token. An error of one row (of its sampling or prefill) ends that row alone; one
        of a step of all rows is raised.

        Raises:
            MisuseError: all slots are in use, for example by open conversations.
            EngineError: a step of all running rows failed.
        """
        yield from self._end_cancelled()
        if self.max_stall is None:
            if self._prefilling is None and not self._may_admit():
                yield from self._decode()
            else:
                yield from self._prefill(limit=None)
            return
        num_decoding = len(self._running)
        yield from self._decode()
        if self._prefilling is not None or self._may_admit():
            yield from self._prefill(limit=self._chunk() if num_decoding else None)

    def close(self) -> None:
        """End all requests and release every slot."""
        self._device_runs.close()
        if self._prefilling is not None:
            slot, request = self._prefilling
            self._running[slot], self._prefilling = request, None
        for slot in list(self._running):
            self._retire(slot)
        self._waiting.clear()
        if self.prefixes is not None:
            self.prefixes.clear()

    def _end_cancelled(self) -> Iterator[Ended]:
        """Release the slots of cancelled and late requests."""
        now = time.monotonic()

        def reason_of(request: Request) -> EndReason | None:
            if request.is_cancelled:
                return "cancelled"
            return "deadline" if request.deadline is not None and now >= request.deadline else None

        ended: list[Ended] = []
        for request in [request for request in self._waiting if reason_of(request) is not None]:
            self._waiting.remove(request)
            ended.append(Ended(request, reason_of(request) or "cancelled"))
        if self._prefilling is not None and (reason := reason_of(self._prefilling[1])) is not None:
            slot, request = self._prefilling
            self._running[slot], self._prefilling = request, None
        for slot, request in list(self._running.items()):
            if (reason := reason_of(request)) is not None:
                self._retire(slot)
                ended.append(Ended(request, reason))
        yield from ended

    def _may_admit(self) -> bool:
        if not self._waiting:
            return False
        num_free = self.engine.cache.num_free + (self.prefixes.num_idle if self.prefixes is not None else 0)
        return self._waiting[0].slot is not None or num_free > 0 or not self._running

    def _admit(self) -> tuple[int, Request]:
        """Take a slot for the first waiting request; raises MisuseError if all are in use elsewhere."""
        request = self._waiting[0]
        if request.slot is not None:
            slot = request.slot
        elif self.prefixes is not None:
            reusable = request.prompt_ids if request.num_prompt_logprobs is None else []
            slot = self.prefixes.admit(reusable, request.cache_salt, request.source_key)
        else:
            slot = self.engine.cache.admit()
        self._waiting.popleft()
        request.num_cached = int(self.engine.cache.lengths[slot])
        if request.num_cached >= len(request.prompt_ids):
            raise MisuseError(
                f"Slot {slot} holds {request.num_cached} positions, which are not a part of the prompt; rewind it."
            )
        request.times.queue = time.perf_counter() - request.added_at
        return slot, request

    def _chunk(self) -> int:
        """Number of prompt tokens that can be prefilled within `max_stall`."""
        assert self.max_stall is not None
        if self._token_seconds is None:
            return LEAST_CHUNK
        return max(LEAST_CHUNK, int(self.max_stall / self._token_seconds) // LEAST_CHUNK * LEAST_CHUNK)

    def _prefill(self, limit: int | None) -> Iterator[Token | Ended]:
        """Prefill at most `limit` tokens of one prompt; the last chunk gives the first token."""
        slot, request = self._prefilling or self._admit()
        self._prefilling = slot, request
        start = int(self.engine.cache.lengths[slot])
        wants_all = request.num_prompt_logprobs is not None
        if wants_all:
            limit = min(limit or LOGITS_CHUNK, LOGITS_CHUNK)
        stop = len(request.prompt_ids) if limit is None else min(start + limit, len(request.prompt_ids))
        is_last = stop == len(request.prompt_ids)
        self._device_runs.close()
        began = time.perf_counter()
        try:
            if request.source is not None:
                encode(self.engine, slot, request.source)
            num_logits = stop - start if wants_all else int(is_last)
            logits = self.engine.prefill(slot, request.prompt_ids[start:stop], num_logits=num_logits)
            seconds = time.perf_counter() - began
            request.num_prefilled += stop - start
            request.times.prefill += seconds
            self._observe_prefill(stop - start, seconds)
            request.observe_prompt(logits, start)
            if not is_last:
                return
            token = _pick(request, logits[-1])
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this row's
            self._prefilling = None
            self._running[slot] = request
            self._retire(slot)
            yield Ended(request, "error", problem)
            return
        self._prefilling = None
        self._running[slot] = request
        yield from self._deliver(slot, [token])

    def _observe_prefill(self, num_tokens: int, seconds: float) -> None:
        measured = seconds / num_tokens
        known = self._token_seconds
        self._token_seconds = measured if known is None else 0.7 * known + 0.3 * measured

    def _decode(self) -> Iterator[Token | Ended]:
        """One token for each running row, or several for a row whose drafts are accepted."""
        running = dict(self._running)
        if not running:
            return
        drafts_wanted = any(_drafts_wanted(request) for request in running.values())
        picked = None if drafts_wanted else self._device_runs.step(running)
        if picked is not None:
            for slot, pick in picked.items():
                yield from self._deliver(slot, [Token(running[slot], pick, running[slot].sampler.finish_reason)])
            return
        tokens, failed = self._advance(running)
        # All picks first: the caller may use the engine between two tokens, which overwrites the logits.
        for slot, problem in failed.items():
            self._retire(slot)
            yield Ended(running[slot], "error", problem)
        for slot, row in tokens.items():
            yield from self._deliver(slot, row)

    def _advance(self, running: dict[int, Request]) -> tuple[dict[int, list[Token]], dict[int, Exception]]:
        """Tokens of each row, from verified drafts or from one common step; and the rows that failed."""
        tokens: dict[int, list[Token]] = {}
        failed: dict[int, Exception] = {}
        for slot, request in running.items():
            try:
                if draft := _draft(self.engine, slot, request, len(running) - 1):
                    tokens[slot] = _verify(self.engine, slot, request, draft)
            except Exception as problem:  # noqa: BLE001 - whatever it is, it is this row's
                failed[slot] = problem
        rest = {
            slot: request.output_ids[-1]
            for slot, request in running.items()
            if slot not in tokens and slot not in failed
        }
        if rest:
            began = time.perf_counter()
            logits = self.engine.step(rest)
            seconds = time.perf_counter() - began
            for index, (slot, row) in enumerate(logits.items()):
                try:
                    tokens[slot] = [_pick(running[slot], row)]
                except Exception as problem:  # noqa: BLE001 - whatever it is, it is this row's
                    failed[slot] = problem
                if (speculator := running[slot].speculator) is not None and index == 0:
                    speculator.verification.cost.observe(len(logits), seconds)
        return tokens, failed

    def _deliver(self, slot: int, tokens: list[Token]) -> Iterator[Token | Ended]:
        for token in tokens:
            token.request.output_ids.append(token.pick.token_id)
            yield token
            if token.finish_reason is not None or token.request.is_cancelled:
                if self._running.get(slot) is token.request:
                    self._retire(slot)
                    if token.finish_reason is None:
                        yield Ended(token.request, "cancelled")
                break

    def _retire(self, slot: int) -> None:
        """Take a row out of the batch; its slot holds all delivered tokens except the last."""
        request, cache = self._running.pop(slot), self.engine.cache
        if (held := request.num_held) < cache.lengths[slot]:
            cache.rewind(slot, held)  # cancelled at a token after which more were verified
        if request.keep_slot:
            return
        if self.prefixes is not None and request.slot is None:
            tokens = (request.prompt_ids + request.output_ids)[: int(cache.lengths[slot])]
            self.prefixes.keep(slot, tokens, request.cache_salt, request.source_key)
        else:
            cache.release(slot)


def _drafts_wanted(request: Request) -> bool:
    return request.speculator is not None and request.speculator.verification.most_tokens != 0


def _draft(engine: Engine, slot: int, request: Request, num_others: int) -> list[int]:
    speculator, num_left = request.speculator, request.sampler.sampling.max_tokens - len(request.output_ids)
    if speculator is None or speculator.verification.most_tokens == 0:
        return []
    forced = request.sampler.forced_ids()
    if not forced and not speculator.looks_up:
        return []
    if speculator.verification.most_tokens is None and num_left > 1:
        speculator.verification.probe(engine, slot, request.prompt_ids + request.output_ids)
    return speculator.draft(num_left, num_others, forced)


def _verify(engine: Engine, slot: int, request: Request, draft: list[int]) -> list[Token]:
    """Run the last token and its draft in one call; pick while the draft is right, and one token more."""
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
    request.times.sampling += time.perf_counter() - began
    return Token(request, pick, request.sampler.finish_reason)
