"""SIGTERM, as container platforms send it: the command cleans up and ends with exit status 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """The process was asked to end. A KeyboardInterrupt, so code that cleans up after Ctrl-C handles it too."""


@contextmanager
def terminating() -> Iterator[None]:
    """Raise Terminated on the first SIGTERM of the block; later ones are ignored, since the process is ending already.

    As process 1 of a container Python would otherwise ignore the signal and be killed ten seconds later. Nothing is
    changed outside the main thread, which alone gets signals, and where SIGTERM already has a handler.
    """
    is_ours = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not is_ours:
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
