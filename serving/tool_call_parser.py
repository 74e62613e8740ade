"""Calls between the markers of a template, taken apart as they come: the name first, then the arguments in pieces.

A call is `{"name": ..., "arguments": {...}}`, alone or in a list. Arguments are passed on as the model wrote them. A
call in another order of keys is taken whole once it has ended; what is no call is content.
"""

import re
from dataclasses import dataclass
from typing import Literal

import msgspec


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of content or reasoning; the beginning of a tool call, with its name; or a piece of its arguments.

    The first piece of the arguments may be in the beginning already.
    """

    kind: Literal["content", "reasoning", "tool_call", "tool_arguments"]
    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes calls: `begin`, JSON, `end`; without an end the calls reach to the end of the text."""

    begin: str
    end: str | None


# Up to the brace that opens the arguments. The name is JSON.
_HEAD = re.compile(r'\s*(\[?)\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class _Braces:
    """Finds the brace that closes an object of JSON."""

    def __init__(self, depth: int = 0) -> None:
        self._depth, self._is_text, self._is_escaped = depth, False, False

    def length(self, text: str) -> tuple[int, bool]:
        """How many of the next characters belong to the object, and whether it is closed."""
        for place, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_text:
                self._is_escaped = character == "\\"
                self._is_text = character != '"'
            elif character == '"':
                self._is_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1, True
        return len(text), False


class CallParser:
    """Takes apart what follows one opening marker."""

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._state: Literal["head", "arguments", "rest", "next"] = "head"
        self._braces = _Braces()
        self._is_list = self._has_calls = False

    def push(self, text: str, parts: list[Part]) -> tuple[str, bool]:
        """Take text; what is certain is appended to `parts`. The text that is left, and whether it is behind the calls.

        Text that is left before the end must be given again, together with more.
        """
        is_over = False
        while not is_over:
            before = text, self._state
            if self._state == "head":
                text, is_over = self._head(text, parts)
            elif self._state == "next":
                text, is_over = self._next(text)
            elif text:
                text = self._inside(text, parts)
            if (text, self._state) == before:
                break
        return text, is_over

    def flush(self, text: str) -> list[Part]:
        """The text has ended; `text` is what was left."""
        if self._state != "head":
            return []
        return self._whole(text, "")

    def _head(self, text: str, parts: list[Part]) -> tuple[str, bool]:
        found, end = _HEAD.match(text), self._form.end
        place = -1 if end is None else text.find(end)
        if found is not None and (place < 0 or found.end() <= place):
            self._is_list = self._is_list or bool(found[1])
            self._has_calls = True
            self._state, self._braces = "arguments", _Braces()
            parts.append(Part("tool_call", "", _name(found[2])))
            return text[found.end() :], False
        if end is None or place < 0:
            return text, False
        parts += self._whole(text[:place], end)
        return text[place + len(end) :], True

    def _inside(self, text: str, parts: list[Part]) -> str:
        """The arguments, or the keys of a call behind them, which say nothing."""
        length, is_closed = self._braces.length(text)
        if self._state == "arguments":
            parts.append(Part("tool_arguments", text[:length]))
            if is_closed:
                self._state, self._braces = "rest", _Braces(depth=1)
        elif is_closed:
            self._state = "next"
        return text[length:]

    def _next(self, text: str) -> tuple[str, bool]:
        """Behind a call: another one of the list, the end of the list, the closing marker, or other text."""
        left, end = text.lstrip(), self._form.end
        if self._is_list and left.startswith(","):
            self._state = "head"
            return left[1:], False
        if self._is_list and left.startswith("]"):
            self._is_list = False
            return left[1:], False
        if end is not None and left.startswith(end):
            return left[len(end) :], True
        if not left or (end is not None and end.startswith(left)):
            return text, False
        return left, True

    def _whole(self, body: str, end: str) -> list[Part]:
        """Calls that are complete; text that is none is what the model said."""
        if self._has_calls:
            return calls_of(f"[{body}") or [Part("content", body + end)]
        return calls_of(body) or [Part("content", self._form.begin + body + end)]


def calls_of(body: str) -> list[Part]:
    """The calls that a text is, with their arguments; none where it is no call."""
    try:
        given = msgspec.json.decode(body.strip())
    except (msgspec.DecodeError, RecursionError):
        return []
    calls = given if isinstance(given, list) else [given]
    parts = []
    for call in calls:
        name = call.get("name") if isinstance(call, dict) else None
        arguments = call.get("arguments", call.get("parameters", {})) if isinstance(call, dict) else None
        if not isinstance(name, str) or not isinstance(arguments, dict | str):
            return []
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        parts.append(Part("tool_call", text, name))
    return parts


def _name(text: str) -> str:
    try:
        return msgspec.json.decode(text, type=str)
    except msgspec.DecodeError:  # an escape that JSON does not have
        return text[1:-1]
