"""Ctrl-C that waits for a safe place."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether somebody pressed Ctrl-C since the block began."""

    is_requested = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Note the first Ctrl-C of the block instead of raising; the second one raises KeyboardInterrupt at once.

    The block asks `is_requested` where it can stop and raises then itself. Outside the main thread, which alone gets
    signals, and under a handler that is not Python's own, nothing is changed.
    """
    interrupt = Interrupt()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield interrupt
        return

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.is_requested:
            signal.default_int_handler(number, frame)
        interrupt.is_requested = True

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
