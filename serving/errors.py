"""What goes wrong with a request, in the shape and with the status that clients of OpenAI's API know."""

import asyncio
from typing import Any

from piston.core.errors import MissingExtraError, MisuseError, TemplateError

UNFINISHED = "The server shut down before this request was finished."


class RequestError(Exception):
    """Refuses or ends one request.

    Args:
        message: what happened and what to do.
        status: of HTTP.
        kind: OpenAI's error type.
        param: the field of the request that is wrong.
        code: OpenAI's error code.
        retry_after: seconds after which the request may succeed.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def to_json(self) -> dict[str, Any]:
        """The body of an answer, and the data of an event in mid-stream."""
        problem = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": problem}


class QueueFullError(RequestError):
    """More waits than is allowed to."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(
            message, status=429, kind="rate_limit_error", code="rate_limit_exceeded", retry_after=retry_after
        )


class ShuttingDownError(RequestError):
    """The server takes no more requests, or could not finish this one in time."""

    def __init__(self, message: str = "The server is shutting down; send the request to another replica.") -> None:
        super().__init__(message, status=503, kind="service_unavailable_error", code="shutting_down", retry_after=1)


class DeadlineError(RequestError):
    """The time that the client allowed has passed."""

    def __init__(self) -> None:
        super().__init__(
            "The request did not finish within its X-Request-Timeout; allow more seconds or ask for less.",
            status=504,
            kind="timeout_error",
            code="timeout",
        )


def request_error(problem: BaseException) -> RequestError:
    """Whatever was raised, as what the client is told; what is not the client's fault is not described to it."""
    if isinstance(problem, RequestError):
        return problem
    if isinstance(problem, MisuseError | TemplateError | MissingExtraError):
        return RequestError(str(problem), param=_param_of(str(problem)))
    if isinstance(problem, asyncio.CancelledError):
        return ShuttingDownError()
    return RequestError(
        "The engine failed on this request; the server's log has the reason under this request's id.",
        status=500,
        kind="server_error",
        code="internal_error",
    )


def _param_of(message: str) -> str | None:
    """Messages about an option begin with its name, as in "temperature is -1.0; it must be ..."."""
    first, _, rest = message.partition(" ")
    name = first.partition("[")[0]
    is_option = rest.startswith("is ") and name.isidentifier() and name.islower()
    return name if is_option else None
