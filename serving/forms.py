"""Requests that are forms: multipart/form-data, which may have files, and application/x-www-form-urlencoded."""

from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from piston.serving.errors import RequestError

MOST_FIELDS = 64
URLENCODED = "application/x-www-form-urlencoded"


def is_multipart(headers: Headers) -> bool:
    """Whether a request may have files, by its content type."""
    return headers.get("content-type", "").lower().startswith("multipart/form-data")


async def form_of(headers: Headers, body: bytes) -> dict[str, Any] | None:
    """The fields of a form: text, bytes of files, and a list of the texts of a name that ends in []; None without one.

    What begins as JSON is none, whatever its content type: curl says of all that it sends it is a urlencoded form.

    Raises:
        RequestError: it is damaged or not UTF-8, or a name comes twice.
    """
    if is_multipart(headers):
        return await _multipart_of(headers, body)
    if not headers.get("content-type", "").lower().startswith(URLENCODED) or body.lstrip()[:1] in (b"{", b"["):
        return None
    try:
        items = parse_qsl(
            body.decode(), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MOST_FIELDS
        )
    except UnicodeDecodeError as problem:
        raise RequestError(f"The form is not UTF-8 ({problem.reason}).") from None
    except ValueError:
        return None
    given: dict[str, Any] = {}
    for name, value in items:
        _put(given, name, value)
    return given


async def _multipart_of(headers: Headers, body: bytes) -> dict[str, Any]:

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, whole(), max_files=1, max_fields=MOST_FIELDS, max_part_size=len(body) + 1)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as problem:
        raise RequestError(f"The form cannot be read: {getattr(problem, 'message', problem)}.") from None
    given: dict[str, Any] = {}
    try:
        for name, value in form.multi_items():
            # Starlette reads what is not UTF-8 as Latin-1, without a word; encoded again it is not what was sent.
            if isinstance(value, str) and f"\r\n\r\n{value}\r\n--".encode(errors="surrogatepass") not in body:
                raise RequestError(f"{name} of the form is not UTF-8; encode it so.", param=name)
            _put(given, name, await value.read() if isinstance(value, UploadFile) else value)
    finally:
        await form.close()
    return given


def _put(given: dict[str, Any], name: str, value: Any) -> None:
    if name.endswith("[]"):
        given.setdefault(name.removesuffix("[]"), []).append(value)
    elif name in given:
        raise RequestError(f"The form has {name!r} twice.", param=name)
    else:
        given[name] = value
