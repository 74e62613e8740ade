"""The decode loop for a fixed list of requests: a scheduler, stepped until each is finished."""

from collections.abc import Iterable, Iterator

from piston.runtime.backends.engine import Engine
from piston.runtime.generate.request import Ended, Request, Token
from piston.runtime.generate.scheduler import Scheduler


def decode(engine: Engine, requests: Iterable[Request]) -> Iterator[Token]:
    """Generate every request; those for which no slot is free wait until one is released.

    Slots are released however the loop ends, including when the generator is closed.

    Raises:
        EmptyPromptError: a prompt without tokens; nothing was run.
        PromptTooLongError: prompt and max_tokens exceed the capacity; nothing was run.
        MisuseError: all slots are in use, for example by open conversations.
    """
    scheduler = Scheduler(engine)
    for request in requests:
        scheduler.add(request)
    try:
        while scheduler.has_work:
            for event in scheduler.step():
                if isinstance(event, Token):
                    yield event
                elif isinstance(event, Ended) and event.error is not None:
                    raise event.error
    finally:
        scheduler.close()
