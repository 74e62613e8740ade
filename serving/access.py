"""What stands before every endpoint: API keys, limits, one line of log, and errors in one shape."""

import hashlib
import hmac
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from piston.core.console import log_line, logs_json, note, pass_on
from piston.serving.errors import RequestError, request_error
from piston.serving.event_stream import ClientLeftError
from piston.serving.tracing import Tracer, end_request

OPEN_PATHS = ("/health", "/ready", "/")  # that ask for no key
CLIENT_LEFT = 499  # as nginx logs it; nobody is told


class ApiKeys:
    """Compares in constant time, and names each key without revealing it."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def salt_of(self, headers: Headers) -> str:
        """What separates the prompts of this key from those of others; empty where no key is asked for.

        Raises:
            RequestError: 401, the key is missing or not one of ours.
        """
        if not self._digests:
            return ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise RequestError(
                "An API key is needed; send the header `Authorization: Bearer KEY`.",
                status=401,
                kind="authentication_error",
                code="missing_api_key",
            )
        digest = hashlib.sha256(given.strip().encode()).digest()
        found = [known for known in self._digests if hmac.compare_digest(known, digest)]
        if not found:
            raise RequestError(
                "The API key is not one of this server's.",
                status=401,
                kind="authentication_error",
                code="invalid_api_key",
            )
        return found[0].hex()[:16]


class Access:
    """ASGI middleware: an id and a line of log for each request, and an answer for each error."""

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, count: Callable[[str, int], None], tracer: Tracer | None = None
    ) -> None:
        self._app = app
        self._keys = keys
        self._count = count
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _safe(headers.get("x-request-id", "")) or uuid.uuid4().hex
        if self._tracer is None:
            await self._request(scope, receive, send, headers, request_id)
            return
        with self._tracer.request(scope["method"], scope["path"], headers, request_id) as span:
            end_request(span, scope["method"], await self._request(scope, receive, send, headers, request_id))

    async def _request(self, scope: Scope, receive: Receive, send: Send, headers: Headers, request_id: str) -> int:
        """Answer one request; its status, 0 where nothing was sent."""
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            scope["state"] = dict(scope.get("state", {})) | {"request_id": request_id, "salt": ""}
            if scope["path"] not in OPEN_PATHS:
                scope["state"]["salt"] = self._keys.salt_of(headers)
            await self._app(scope, receive, answer)
        except (ClientLeftError, ClientDisconnect):
            status = CLIENT_LEFT
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this request's
            if status == 0:
                await _tell(problem, request_id)(scope, receive, answer)
            else:
                note(f"request {request_id} broke off: {problem!r}", "error")
        finally:
            self._count(scope["path"], status)
            _log(scope, request_id, status, time.perf_counter() - began)
        return status


async def body_of(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        RequestError: 413, it has more than `limit` bytes.
    """
    refusal = RequestError(f"The body has more than {limit:,} bytes; send less.", status=413, code="request_too_large")
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > limit:
        raise refusal
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise refusal
        parts.append(part)
    return b"".join(parts)


def json_response(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(data), status, headers, "application/json")


def _tell(problem: Exception, request_id: str) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    error = request_error(problem)
    if error.status >= 500 and not isinstance(problem, RequestError):  # noqa: PLR2004 - the class of statuses
        note(f"request {request_id} failed: {problem!r}", "error")
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:  # noqa: PLR2004 - unauthorized
        headers["www-authenticate"] = "Bearer"
    return json_response(error.to_json(), error.status, headers)


def _log(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    client = (scope.get("client") or ("-",))[0]
    path = scope["path"].encode("unicode_escape").decode()
    if logs_json():
        fields = {"client": client, "method": scope["method"], "path": path, "status": status}
        pass_on(log_line("info", **fields, ms=round(seconds * 1e3, 1), request_id=request_id))
    else:
        note(f"{client} {scope['method']} {path} {status} {seconds * 1e3:.1f} ms {request_id}")


def _safe(text: str) -> str:
    """A request's id as the client names it, if it is one."""
    return text if text.replace("-", "").replace("_", "").isalnum() and len(text) <= 128 else ""  # noqa: PLR2004
