"""The decode loop for a fixed list of requests: a scheduler, stepped until each is finished."""

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence

from piston.runtime.backends.engine import Engine
from piston.runtime.generate.beam_search import Hypothesis
from piston.runtime.generate.request import Ended, Found, Request, Token, check_beams
from piston.runtime.generate.scheduler import Scheduler
from piston.runtime.sampling.beam_params import BeamParams


def decode(engine: Engine, requests: Iterable[Request]) -> Iterator[Token]:
    """Generate every request; those for which no slot is free wait until one is released.

    Slots are released however the loop ends, including when the generator is closed.

    Raises:
        EmptyPromptError: a prompt without tokens; nothing was run.
        PromptTooLongError: prompt and max_tokens exceed the capacity; nothing was run.
        MisuseError: all slots are in use, for example by open conversations.
    """
    with contextlib.closing(_events(engine, requests)) as events:
        yield from (event for event in events if isinstance(event, Token))


def beam_search(engine: Engine, requests: Sequence[Request], params: BeamParams) -> list[list[Hypothesis]]:
    """The best answers to each request, `num_return_sequences` of each, best first; none where it was cancelled.

    As many requests are searched together as the free slots of the engine hold the beams of.

    Raises:
        MisuseError: more beams than free slots, an option that beam search does not have, or a cache that cannot be
            copied.
        EmptyPromptError, PromptTooLongError: a request does not fit; nothing was run.
        EngineError: the backend fails.
    """
    for request in requests:
        request.beams = params
        check_beams(engine, request, engine.cache.num_free)
    found = {id(event.request): event.hypotheses for event in _events(engine, requests) if isinstance(event, Found)}
    return [found.get(id(request), []) for request in requests]


def _events(engine: Engine, requests: Iterable[Request]) -> Generator[Token | Found]:
    scheduler = Scheduler(engine)
    for request in requests:
        scheduler.add(request)
    try:
        while scheduler.has_work:
            for event in scheduler.step():
                if not isinstance(event, Ended):
                    yield event
                elif event.error is not None:
                    raise event.error
    finally:
        scheduler.close()
