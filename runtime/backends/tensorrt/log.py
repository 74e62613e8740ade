"""TensorRT's log: one logger for the process, which keeps errors for our messages and prints nothing.

TensorRT keeps the first logger of a process and warns about every other, so there is one for each module.
"""

import functools
import importlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from piston.core.errors import EngineError, MissingExtraError

Result = TypeVar("Result")
EXTRAS = {"tensorrt": "trt", "tensorrt_rtx": "rtx", "tensorrt_lean": "trt-lean"}


def open_module(name: str) -> Any:
    """Import `tensorrt`, `tensorrt_rtx` or `tensorrt_lean`; raises MissingExtraError."""
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise MissingExtraError(
            f"{name} cannot be imported ({problem}); pip install 'piston[{EXTRAS[name]}]'."
        ) from None


@functools.cache
def log_of(module: Any) -> Any:
    """The process's logger of a module; its `errors` are the latest messages of severity ERROR or worse."""

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()  # a pybind11 base class requires this call
            self.errors: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(msg.split()))

    return Log()


@contextmanager
def reported(log: Any, doing: str) -> Iterator[None]:
    """Turn a refusal found by `accepted`, or an exception of the module, into EngineError with the logged reason."""
    log.errors.clear()
    try:
        yield
    except EngineError:
        raise
    except (_Refused, RuntimeError, TypeError, ValueError) as problem:
        said = "; ".join(log.errors) or str(problem) or "it gave no reason"
        raise EngineError(f"TensorRT failed while {doing}: {said}.") from problem


def accepted(result: Result | None) -> Result:
    """Return the result of a call that gives None or False when it fails, and raise in that case."""
    if result is None or result is False:
        raise _Refused
    return result


class _Refused(Exception):  # noqa: N818 - never seen outside
    """A TensorRT call returned None or False."""
