"""SIGTERM, as container platforms send it: a chance to end in good order, then exit status 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """Somebody asked the process to end. A KeyboardInterrupt: whatever cleans up after Ctrl-C cleans up after this."""


@contextmanager
def terminating() -> Iterator[None]:
    """Raise Terminated on the first SIGTERM of the block; a second one finds the process ending already.

    As process 1 of a container Python would otherwise ignore the signal and be killed ten seconds later. Outside the
    main thread, which alone gets signals, and where somebody handles SIGTERM already, nothing is changed.
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
