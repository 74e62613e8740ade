"""Requests that carry files: multipart/form-data as fields by name."""

from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from piston.serving.errors import RequestError

MOST_FIELDS = 64


def is_form(headers: Headers) -> bool:
    """Whether a request is one, by its content type."""
    return headers.get("content-type", "").lower().startswith("multipart/form-data")


async def form_of(headers: Headers, body: bytes) -> dict[str, Any]:
    """The fields of a form: text, bytes of files, and a list of the texts of a name that ends in [].

    Raises:
        RequestError: it is damaged, or a name comes twice.
    """

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
            if name.endswith("[]"):
                given.setdefault(name.removesuffix("[]"), []).append(value)
            elif name in given:
                raise RequestError(f"The form has {name!r} twice.", param=name)
            else:
                given[name] = await value.read() if isinstance(value, UploadFile) else value
    finally:
        await form.close()
    return given
