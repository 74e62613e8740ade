"""The beam searches that a scheduler runs among its other rows, a step of all of them at a time."""

from collections.abc import Callable, Mapping

from piston.runtime.backends.engine import Engine, Logits
from piston.runtime.generate.beam_search import Search
from piston.runtime.generate.prefix_cache import PrefixCache
from piston.runtime.generate.request import Ended, EndReason, Found, Request

Events = list[Found | Ended]


class Searches:
    """Beam searches and their slots.

    Args:
        engine: of the scheduler.
        prefixes: keeps one slot of a search that ended, rewound to its prompt; None: it is released.
        new_slot: gives an empty slot for a request.
    """

    def __init__(
        self, engine: Engine, prefixes: PrefixCache | None, new_slot: Callable[[Request, list[int]], int]
    ) -> None:
        self._engine = engine
        self._prefixes = prefixes
        self._new_slot = new_slot
        self._open: list[Search] = []

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_slots(self) -> int:
        """Slots that they hold."""
        return sum(len(search.slots) for search in self._open)

    def begin(self, slot: int, request: Request, logits: Logits | None) -> Events:
        """Take the slots of the other beams, and the first step; `slot` holds the prompt, whose last logits these are.

        Without logits it holds all but the last token, which the next step reads.

        An error, such as slots that were taken during the prefill, is that of the request alone, as in `advance`.
        """
        search = Search(request, [slot], is_read=logits is not None)
        first = None if logits is None else logits.copy()  # taking a slot may copy rows
        self._open.append(search)
        try:
            while len(search.slots) < request.num_slots:
                search.slots.append(self._new_slot(request, []))
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this request's
            return [self._failed(search, problem)]
        return [] if first is None else self._advance(search, {slot: first})

    def next_tokens(self) -> dict[int, int]:
        """What the next step reads, by slot."""
        return {slot: token for search in self._open for slot, token in search.next_tokens().items()}

    def advance(self, logits: Mapping[int, Logits]) -> Events:
        """Choose the next beams of each search by the logits of a step, by slot; what has ended."""
        return [event for search in list(self._open) for event in self._advance(search, logits)]

    def end(self, reason_of: Callable[[Request], EndReason | None]) -> Events:
        """End the searches of requests for which there is a reason."""
        ended = [(search, reason) for search in self._open if (reason := reason_of(search.request)) is not None]
        for search, _ in ended:
            self._release(search)
        return [Ended(search.request, reason) for search, reason in ended]

    def close(self) -> None:
        """End all, and release their slots."""
        for search in list(self._open):
            self._release(search)

    def _advance(self, search: Search, logits: Mapping[int, Logits]) -> Events:
        try:
            search.advance(self._engine, logits)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this request's
            return [self._failed(search, problem)]
        if not search.is_done:
            return []
        self._release(search)
        return [Found(search.request, search.found)]

    def _failed(self, search: Search, problem: Exception) -> Ended:
        self._release(search)
        return Ended(search.request, "error", problem)

    def _release(self, search: Search) -> None:
        self._open.remove(search)
        request, cache = search.request, self._engine.cache
        first, *others = search.slots
        for slot in others:
            cache.release(slot)
        if self._prefixes is None:
            cache.release(first)
            return
        held = request.prompt_ids[: int(cache.lengths[first])]
        cache.rewind(first, len(held))
        self._prefixes.keep(first, held, request.cache_salt, request.source_key)
