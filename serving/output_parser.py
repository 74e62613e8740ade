"""An answer's text is taken apart by the markers of its chat template: reasoning, content, and tool calls.

The text may come in pieces cut anywhere: the parts joined are the same. White space beside a marker belongs to nobody.
"""

from dataclasses import dataclass
from typing import Literal

from piston.serving.tool_call_parser import CallParser, Part, ToolFormat

THINK, END_THINK = "<think>", "</think>"


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


class OutputParser:
    """Takes one answer apart.

    Args:
        markers: of the template.
        is_thinking: the prompt ended inside reasoning.
        tools: calls are looked for; otherwise they are content.
    """

    def __init__(self, markers: Markers, *, is_thinking: bool = False, tools: bool = False) -> None:
        self._format = markers.tools if tools else None
        self._state: Literal["start", "reasoning", "content"] = "content"
        if markers.thinks:
            self._state = "reasoning" if is_thinking else "start"
        self._call: CallParser | None = None
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
        if self._call is not None:
            parts += self._call.flush(held)
        elif held and not (self._strips and held.isspace()):
            parts.append(Part("reasoning" if self._state == "reasoning" else "content", held))
        return parts

    def _advance(self, parts: list[Part]) -> bool:
        """One step; False once more text is needed."""
        if self._state == "start":
            return self._begin()
        if self._call is not None:
            self._held, is_over = self._call.push(self._held, parts)
            if is_over:
                self._call, self._strips = None, True
            return is_over
        marker = END_THINK if self._state == "reasoning" else self._format.begin if self._format else None
        kind: Literal["content", "reasoning"] = "reasoning" if self._state == "reasoning" else "content"
        if self._strips:
            self._held = self._held.lstrip()
        before, found, after = self._held.partition(marker) if marker else (self._held, "", "")
        if found:
            if text := before.rstrip():
                parts.append(Part(kind, text))
            self._held, self._strips = after, True
            if self._state == "content" and self._format is not None:
                self._call = CallParser(self._format)
            self._state = "content"
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


def _certain(text: str, marker: str | None) -> int:
    """How many characters can belong to no marker, nor to white space before one."""
    if marker is None:
        return len(text)
    possible = next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if marker.startswith(text[-n:])), 0)
    return len(text[: len(text) - possible].rstrip())
