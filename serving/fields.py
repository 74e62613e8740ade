"""Reading a request: which of its fields are supported, which are refused, and which are unknown.

A field that is null counts as not given, as in OpenAI's API. A field that is neither listed as supported nor as refused
is unknown, and refused as well. docs/serving.md shows every field of every endpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from piston.core.errors import MisuseError
from piston.core.unicode import check_unicode_in
from piston.serving.errors import RequestError

Meta = msgspec.Meta
Text = Annotated[str, Meta(min_length=1)]
Identifier = Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,128}$")]
Json = dict[str, Any]
Body = TypeVar("Body", bound=msgspec.Struct)
NO_MECHANISM = "there is no such mechanism"


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that is known and not supported; values that ask for nothing are accepted."""

    reason: str
    harmless: tuple[Any, ...] = ()


def decoded(body: bytes) -> dict[str, Any]:
    """The JSON object of a request; raises RequestError where it is none."""
    given = parsed(body)
    if not isinstance(given, dict):
        raise RequestError("The body must be a JSON object.")
    return given


def parsed(data: bytes | str, name: str = "") -> Any:
    """The value of JSON: of a request's body, or of the text in its field `name`; raises RequestError where it is none.

    An unpaired surrogate, of which msgspec says that the text ends there or that the pair is invalid, is named with the
    field that has it.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        try:
            check_unicode_in(json.loads(data), name)
        except MisuseError as surrogate:
            place = str(surrogate).partition(" has ")[0]
            raise RequestError(str(surrogate), param=None if " " in place else place) from None
        except (ValueError, RecursionError):
            pass
        raise RequestError(f"{name or 'The body'} is no JSON: {problem}.", param=name or None) from None


def read(
    given: Mapping[str, Any], kind: type[Body], refused: Mapping[str, Refused], *, lenient: bool, is_form: bool = False
) -> tuple[Body, list[str]]:
    """A request, and with `lenient` the names of the fields that are ignored; in a form numbers are texts.

    Raises:
        RequestError: a field is unknown, not supported, or of the wrong type.
    """
    known, ignored = {field.name for field in msgspec.structs.fields(kind)}, []
    kept = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in known:
            kept[name] = value
        elif name not in refused or not _is_harmless(value, refused[name]):
            if not lenient:
                reason = refused[name].reason if name in refused else "it is no field of this endpoint"
                raise RequestError(
                    f"{name} is not supported: {reason}; leave it out.", param=name, code="unsupported_parameter"
                )
            ignored.append(name)
    try:
        return msgspec.convert(kept, kind, strict=not is_form, builtin_types=(bytes,)), ignored
    except (msgspec.ValidationError, RecursionError) as problem:
        message, _, path = str(problem).partition(" - at `$")
        param = path.rstrip("`").removeprefix(".") or None
        raise RequestError(f"{param or 'The request'}: {message}.", param=param) from None


def _is_harmless(value: Any, refused: Refused) -> bool:
    return any(value == harmless and type(value) is type(harmless) for harmless in refused.harmless)
