"""An answer's text is taken apart by the markers of its chat template: reasoning, content, and tool calls.

The text may come in pieces cut anywhere: the parts joined are the same. White space beside a marker belongs to nobody.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes calls: `begin`, JSON, `end`; without an end the call reaches to the end of the text."""

    begin: str
    end: str | None


HERMES = ToolFormat("<tool_call>", "</tool_call>")  # one object with "name" and "arguments"
MISTRAL = ToolFormat("[TOOL_CALLS]", None)  # a list of such objects


@dataclass(frozen=True, slots=True)
class Markers:
    """What a chat template says of the answers of its model."""

    thinks: bool = False
    tools: ToolFormat | None = None

    @classmethod
    def of(cls, template: str) -> "Markers":
        """The markers that a template's source names."""
        tools = None
        if HERMES.begin in template and "<function=" not in template:
            tools = HERMES
        elif MISTRAL.begin in template and "[ARGS]" not in template:
            tools = MISTRAL
        return cls(thinks=END_THINK in template, tools=tools)

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        tools = () if self.tools is None else (self.tools.begin, self.tools.end or "")
        return tuple(filter(None, (*((THINK, END_THINK) if self.thinks else ()), *tools)))


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of content or reasoning, or one whole tool call: its name, and the arguments as JSON in `text`."""

    kind: Literal["content", "reasoning", "tool_call"]
    text: str
    name: str = ""


class OutputParser:
    """Takes one answer apart.

    Args:
        markers: of the template.
        is_thinking: the prompt ended inside reasoning.
        tools: calls are looked for; otherwise they are content.
    """

    def __init__(self, markers: Markers, *, is_thinking: bool = False, tools: bool = False) -> None:
        self._format = markers.tools if tools else None
        self._state: Literal["start", "reasoning", "content", "call"] = "content"
        if markers.thinks:
            self._state = "reasoning" if is_thinking else "start"
        self._is_plain = not markers.thinks and self._format is None
        self._held = ""
        self._strips = self._state == "reasoning"  # white space at the beginning of what comes next

    def push(self, text: str) -> list[Part]:
        """Take the next piece; what is now certain."""
        if self._is_plain:
            return [Part("content", text)] if text else []
        self._held += text
        parts: list[Part] = []
        while self._advance(parts):
            pass
        return parts

    def flush(self) -> list[Part]:
        """The text has ended."""
        parts: list[Part] = []
        held, self._held = self._held, ""
        if self._state == "call":
            assert self._format is not None
            parts += _calls(held) or [Part("content", self._format.begin + held)]
        elif held and not (self._strips and held.isspace()):
            parts.append(Part("reasoning" if self._state == "reasoning" else "content", held))
        return parts

    def _advance(self, parts: list[Part]) -> bool:
        """One step; False once more text is needed."""
        if self._state == "start":
            return self._begin()
        if self._state == "call":
            return self._call(parts)
        marker = END_THINK if self._state == "reasoning" else self._format.begin if self._format else None
        kind: Literal["content", "reasoning"] = "reasoning" if self._state == "reasoning" else "content"
        if self._strips:
            self._held = self._held.lstrip()
        before, found, after = self._held.partition(marker) if marker else (self._held, "", "")
        if found:
            if text := before.rstrip():
                parts.append(Part(kind, text))
            self._held, self._strips = after, True
            self._state = "content" if self._state == "reasoning" else "call"
            return True
        certain = _certain(self._held, marker)
        if certain:
            parts.append(Part(kind, self._held[:certain]))
            self._held, self._strips = self._held[certain:], False
        return False

    def _begin(self) -> bool:
        """Does the answer begin with reasoning?"""
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._held, self._state, self._strips = text[len(THINK) :], "reasoning", True
            return True
        if THINK.startswith(text):
            return False
        self._state = "content"
        return True

    def _call(self, parts: list[Part]) -> bool:
        assert self._format is not None
        if self._format.end is None:
            return False
        body, found, after = self._held.partition(self._format.end)
        if not found:
            return False
        # What is no call is what the model said.
        parts += _calls(body) or [Part("content", self._format.begin + body + found)]
        self._held, self._state, self._strips = after, "content", True
        return True


def _certain(text: str, marker: str | None) -> int:
    """How many characters can belong to no marker, nor to white space before one."""
    if marker is None:
        return len(text)
    possible = next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if marker.startswith(text[-n:])), 0)
    return len(text[: len(text) - possible].rstrip())


def _calls(body: str) -> list[Part]:
    """The calls that a text between markers holds; none where it is no call."""
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
