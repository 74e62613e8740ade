"""Busy processes that run while a system is measured, as on a shared machine."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# A process that survived its parent would be busy for ever.
_BUSY = "import os\nparent = os.getppid()\nprint(flush=True)\nwhile os.getppid() == parent:\n    sum(range(10**6))"


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep `count` processes busy, each in one thread of ordinary priority, for as long as the block lasts."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(_busy())
        yield


@contextmanager
def _busy() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _BUSY], stdout=subprocess.PIPE)  # noqa: S603
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it is busy from here on
        yield
    finally:
        process.kill()
        process.communicate()
