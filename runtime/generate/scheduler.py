"""Continuous batching: requests are added and cancelled at any time, and each step generates for all running rows.

A step applies cancellations and deadlines, decodes every running row, and then prefills. With `max_stall` it prefills
one chunk of one prompt, so short that running rows wait about as long as that. A prompt shorter than what is left of
the one before takes turns with it, so a short prompt does not wait for a long one, nor a long one for ever. Without
`max_stall`, whole prompts, one at a time. It knows token ids only, no text.
"""

import time
from collections import deque
from collections.abc import Iterator

from piston.core.errors import MisuseError
from piston.runtime.backends.engine import Engine, encode
from piston.runtime.generate.chunk_size import IDLE_CHUNK, ChunkSize, Stall
from piston.runtime.generate.device_loop import DeviceRuns
from piston.runtime.generate.drafting import draft_of, drafts_wanted, pick, verified
from piston.runtime.generate.prefix_cache import PrefixCache
from piston.runtime.generate.request import Ended, EndReason, Found, Request, Token, check_beams, check_fits
from piston.runtime.generate.searches import Searches

LOGITS_CHUNK = 64  # where the logits of every position are wanted: bounds what they take


class Scheduler:
    """Schedules requests for the decode loop, the server and benchmarks. One thread at a time may use it.

    Args:
        engine: its free slots are used; slots in use elsewhere are left alone.
        max_stall: seconds that a running row may wait for another row's prompt in one step; "auto": somewhat longer
            than the row's own steps take (ChunkSize); None: a whole prompt.
        keep_prefixes: slots of ended rows keep their states, and a later prompt that begins with the same tokens (and
            has the same cache_salt) prefills only the rest.
    """

    def __init__(self, engine: Engine, *, max_stall: Stall | None = None, keep_prefixes: bool = False) -> None:
        self.engine = engine
        self.prefixes = PrefixCache(engine.cache) if keep_prefixes else None
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._searches = Searches(engine, self.prefixes, self._new_slot)
        self._prefilling: dict[int, Request] = {}  # by slot, up to two, in the order of their turns
        self._device_runs = DeviceRuns(engine)
        self._chunk_size = None if max_stall is None else ChunkSize(max_stall)

    @property
    def has_work(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self._waiting or self._is_running)

    @property
    def _is_running(self) -> bool:
        return bool(self._running or self._searches or self._prefilling)

    @property
    def num_running(self) -> int:
        """Number of rows that have a slot."""
        return len(self._running) + self._searches.num_slots + len(self._prefilling)

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
            MisuseError: more beams than slots, or an option that a beam search does not have.
        """
        check_fits(self.engine, request)
        request.added_at = time.perf_counter()
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request at the next step, whether it waits or runs."""
        request.cancel()

    def step(self) -> Iterator[Token | Found | Ended]:
        """Generate at least one token for each running row; iterate to the end before the next step.

        Each request ends with a token that has a finish_reason, a beam search with Found, or either with an Ended; one
        that is cancelled while its token is delivered gets no further token. An error of one row (of its sampling or
        prefill) ends that row alone; one of a step of all rows is raised.

        Raises:
            MisuseError: all slots are in use, for example by open conversations.
            EngineError: a step of all running rows failed.
        """
        yield from self._end_cancelled()
        is_decoding = bool(self._running or self._searches)
        if self._chunk_size is not None:
            yield from self._decode()
        if self._may_admit():
            slot, request = self._admit()
            self._prefilling[slot] = request
        if self._prefilling:
            # A slot whose turn it was comes behind the other.
            slot = next(iter(self._prefilling))
            self._prefilling[slot] = self._prefilling.pop(slot)
            yield from self._prefill(slot, self._chunk_limit(slot, is_decoding=is_decoding))
        elif self._chunk_size is None:
            yield from self._decode()

    def close(self) -> None:
        """End all requests and release every slot."""
        self._device_runs.close()
        self._running |= self._prefilling
        self._prefilling.clear()
        for slot in list(self._running):
            self._retire(slot)
        self._searches.close()
        self._waiting.clear()
        if self.prefixes is not None:
            self.prefixes.clear()

    def _end_cancelled(self) -> Iterator[Found | Ended]:
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
        for slot, request in list(self._prefilling.items()):
            if reason_of(request) is not None:
                self._running[slot] = self._prefilling.pop(slot)
        for slot, request in list(self._running.items()):
            if (reason := reason_of(request)) is not None:
                self._retire(slot)
                ended.append(Ended(request, reason))
        yield from ended
        yield from self._searches.end(reason_of)

    def _may_admit(self) -> bool:
        if not self._waiting:
            return False
        first = self._waiting[0]
        if self._prefilling and (self._chunk_size is None or len(self._prefilling) > 1):
            return False
        if any(len(first.prompt_ids) >= self._num_left(slot) for slot in self._prefilling):
            return False  # slots of ended rows are worth most to those who come in order
        num_promised = sum(request.num_slots - 1 for request in self._prefilling.values())
        is_room = self._num_free - num_promised >= first.num_slots
        return first.slot is not None or is_room or not self._is_running

    @property
    def _num_free(self) -> int:
        """Slots that may be taken."""
        return self.engine.cache.num_free + (self.prefixes.num_idle if self.prefixes is not None else 0)

    def _admit(self) -> tuple[int, Request]:
        """Take a slot for the first waiting request; raises MisuseError if all are in use elsewhere."""
        request = self._waiting[0]
        check_beams(self.engine, request, self._num_free)
        reusable = request.prompt_ids if request.num_prompt_logprobs is None else []
        slot = self._new_slot(request, reusable) if request.slot is None else request.slot
        self._waiting.popleft()
        request.num_cached = int(self.engine.cache.lengths[slot])
        if request.num_cached >= len(request.prompt_ids):
            raise MisuseError(
                f"Slot {slot} holds {request.num_cached} positions, which are not a part of the prompt; rewind it."
            )
        request.times.queue = time.perf_counter() - request.added_at
        return slot, request

    def _new_slot(self, request: Request, reusable: list[int]) -> int:
        """A free slot; it may hold the first of these tokens, and the request's source."""
        if self.prefixes is None:
            return self.engine.cache.admit()
        return self.prefixes.admit(reusable, request.cache_salt, request.source_key)

    def _chunk_limit(self, slot: int, *, is_decoding: bool) -> int | None:
        """Tokens of the next chunk of a slot's prompt; None: all of them."""
        if self._chunk_size is None:
            return None
        return self._chunk_size.num_tokens(len(self._prefilling[slot].prompt_ids)) if is_decoding else IDLE_CHUNK

    def _num_left(self, slot: int) -> int:
        """Tokens of a slot's prompt that are not prefilled yet."""
        return len(self._prefilling[slot].prompt_ids) - int(self.engine.cache.lengths[slot])

    def _prefill(self, slot: int, limit: int | None) -> Iterator[Token | Found | Ended]:
        """Prefill at most `limit` tokens of a slot's prompt; the last chunk gives the first token."""
        request = self._prefilling[slot]
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
                if stop - start == 1 and is_last and not wants_all:
                    yield from self._join(slot, request, time.perf_counter() - began)
                    return
            num_logits = stop - start if wants_all else int(is_last)
            logits = self.engine.prefill(slot, request.prompt_ids[start:stop], num_logits=num_logits)
            seconds = time.perf_counter() - began
            request.num_prefilled += stop - start
            request.times.prefill += seconds
            if self._chunk_size is not None:
                self._chunk_size.observe_prefill(stop - start, seconds)
            request.observe_prompt(logits, start)
            if not is_last:
                return
            token = pick(request, logits[-1]) if request.beams is None else None
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this row's
            self._running[slot] = self._prefilling.pop(slot)
            self._retire(slot)
            yield Ended(request, "error", problem)
            return
        del self._prefilling[slot]
        if token is None:
            yield from self._searches.begin(slot, request, logits[-1])
            return
        self._running[slot] = request
        yield from self._deliver(slot, [token])

    def _join(self, slot: int, request: Request, seconds: float) -> Iterator[Found | Ended]:
        """Let the next step of all rows read the last token of a prompt, instead of a step of its own."""
        request.num_prefilled += 1
        request.times.prefill += seconds
        del self._prefilling[slot]
        if request.beams is None:
            self._running[slot] = request
        else:
            yield from self._searches.begin(slot, request, None)

    def _decode(self) -> Iterator[Token | Found | Ended]:
        """One token for each running row and beam, or several for a row whose drafts are accepted."""
        running = dict(self._running)
        if not running and not self._searches:
            return
        began = time.perf_counter()
        on_host = bool(self._searches) or any(map(drafts_wanted, running.values()))
        on_host |= any(not request.output_ids for request in running.values())
        picked = None if on_host else self._device_runs.step(running)
        tokens, failed, found = self._advance(running) if picked is None else ({}, {}, [])
        if self._chunk_size is not None:
            self._chunk_size.observe_step(time.perf_counter() - began)
        if picked is not None:
            for slot, chosen in picked.items():
                yield from self._deliver(slot, [Token(running[slot], chosen, running[slot].sampler.finish_reason)])
            return
        # All picks first: the caller may use the engine between two tokens, which overwrites the logits.
        yield from found
        for slot, problem in failed.items():
            self._retire(slot)
            yield Ended(running[slot], "error", problem)
        for slot, row in tokens.items():
            yield from self._deliver(slot, row)

    def _advance(
        self, running: dict[int, Request]
    ) -> tuple[dict[int, list[Token]], dict[int, Exception], list[Found | Ended]]:
        """Tokens of each row, from verified drafts or from one common step; the rows that failed; ended searches."""
        tokens: dict[int, list[Token]] = {}
        failed: dict[int, Exception] = {}
        for slot, request in running.items():
            try:
                if request.output_ids and (draft := draft_of(self.engine, slot, request, len(running) - 1)):
                    tokens[slot] = verified(self.engine, slot, request, draft)
            except Exception as problem:  # noqa: BLE001 - whatever it is, it is this row's
                failed[slot] = problem
        rest = {
            slot: (request.output_ids or request.prompt_ids)[-1]
            for slot, request in running.items()
            if slot not in tokens and slot not in failed
        }
        beams, found = self._searches.next_tokens(), []
        if rest or beams:
            began = time.perf_counter()
            logits = self.engine.step(rest | beams)
            seconds = time.perf_counter() - began
            for index, slot in enumerate(rest):
                try:
                    tokens[slot] = [pick(running[slot], logits[slot])]
                except Exception as problem:  # noqa: BLE001 - whatever it is, it is this row's
                    failed[slot] = problem
                if (speculator := running[slot].speculator) is not None and index == 0:
                    speculator.verification.cost.observe(len(logits), seconds)
            found = self._searches.advance(logits)
        return tokens, failed, found

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
