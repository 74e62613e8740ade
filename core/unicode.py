r"""Texts that are no Unicode: half of a pair of surrogates, which JSON can escape (\ud800) and Python can hold."""

from collections.abc import Mapping

from piston.core.errors import MisuseError


def check_unicode(text: str, name: str) -> str:
    """Return the text; raises MisuseError, which begins with `name`, if it has an unpaired surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise MisuseError(
            f"{name} has the unpaired surrogate \\u{ord(text[problem.start]):04x} at character {problem.start:,}; it "
            "must be a string of Unicode characters."
        ) from None
    return text


def check_unicode_in(value: object, name: str) -> None:
    """Raise MisuseError if a text in a JSON value has an unpaired surrogate.

    The message begins with the place of the text, such as "messages[0].content" or, in the value at `name` "line 3:",
    "line 3: text". May raise RecursionError.
    """
    if isinstance(value, str):
        check_unicode(value, name or "The text")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_unicode_in(item, f"{name}[{index}]")
    elif isinstance(value, Mapping):
        between = " " if name.endswith(":") else "." if name else ""
        for key, item in value.items():
            shown = f"{name}{between}{key}".encode(errors="backslashreplace").decode()
            check_unicode(key, f"The name {shown}")
            check_unicode_in(item, shown)
