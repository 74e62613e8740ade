"""Functions that a model may call: what a request offers, and the grammar where calls are demanded or strict."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import UNSET

from piston.core.json_text import json_text
from piston.runtime.text.tokenizer import Tokenizer
from piston.serving.errors import RequestError
from piston.serving.generation_fields import ChatRequest
from piston.serving.output_parser import Markers
from piston.serving.tool_call_parser import ToolFormat

CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class Tools:
    """What a request offers.

    Attributes:
        offered: as the template takes them.
        wanted: "auto" leaves it to the model; "call" demands calls, of the functions in `names` alone.
        names: of the functions that may be called.
        is_one: there is at most one call.
    """

    offered: tuple[Mapping[str, Any], ...]
    wanted: Literal["auto", "call"]
    names: tuple[str, ...]
    is_one: bool = False

    @property
    def needs_grammar(self) -> bool:
        """Whether calls are held to a grammar."""
        return (
            self.is_one or self.wanted == "call" or any(tool["function"].get("strict") is True for tool in self.offered)
        )


def tools_of(request: ChatRequest, markers: Markers) -> Tools | None:
    """The functions of a request; None where it offers none, or forbids to call them.

    Raises:
        RequestError: they are no functions, or the chat template has no form of calls that is understood.
    """
    choice = "auto" if request.tool_choice is UNSET else request.tool_choice
    tools = () if request.tools is UNSET else tuple(request.tools)
    if not tools:
        if choice not in ("auto", "none"):
            raise RequestError("tool_choice asks for a call, and tools offers no function.", param="tool_choice")
        return None
    names = tuple(_name(tool, n) for n, tool in enumerate(tools))
    if choice == "none":
        return None
    if markers.tools is None:
        raise RequestError(
            "tools are not supported: the chat template of this model has no form of calls that is understood "
            "(<tool_call> or [TOOL_CALLS] around JSON); leave them out.",
            param="tools",
            code="unsupported_parameter",
        )
    is_one = request.parallel_tool_calls is False
    if isinstance(choice, str):
        if choice not in CHOICES:
            raise RequestError(f"tool_choice must be one of {', '.join(CHOICES)}, or a function.", param="tool_choice")
        return Tools(tools, "auto" if choice == "auto" else "call", names, is_one)
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    if choice.get("type") != "function" or name not in names:
        raise RequestError(f"tool_choice names the function {name!r}, which tools does not offer.", param="tool_choice")
    return Tools(tools, "call", (name,), is_one)


def tool_grammar(tools: Tools, form: ToolFormat, tokenizer: Tokenizer) -> str:
    """A Lark grammar of one or more calls, or with "auto" of text in which every call is a right one."""
    functions = [tool["function"] for tool in tools.offered if tool["function"]["name"] in tools.names]
    calls = [_schema(item, held=tools.wanted == "call" or item.get("strict") is True) for item in functions]
    begin, end = _marker(form.begin, tokenizer), "" if form.end is None else _marker(form.end, tokenizer)
    value: dict[str, Any] = {"anyOf": calls} if len(calls) > 1 else calls[0]
    if form.end is None:
        value = {"type": "array", "items": value, "minItems": 1} | ({"maxItems": 1} if tools.is_one else {})
    call = f"%json {json_text(value)}"
    is_one = tools.is_one or len(tools.names) == 1 or form.end is None
    if tools.wanted == "call":
        body = f"start: call{'' if is_one else ' (SPACE call)*'}\ncall: {begin} SPACE {call} SPACE {end}\n"
        return f"%llguidance {{}}\n{body}SPACE: /[ \\n]{{0,2}}/\n"
    opening = f"opening: TEXT {begin}\n" if begin.startswith("<[") else f"opening[lazy]: TEXT {begin}\n"
    answer = "call | TEXT" if tools.is_one else "call* TEXT"
    return (
        f"%llguidance {{}}\nstart: {answer}\ncall: opening SPACE {call} SPACE {end}\n{opening}"
        "TEXT: /(.|\\n)*/\nSPACE: /[ \\n]{0,2}/\n"
    )


def _schema(function: Mapping[str, Any], *, held: bool) -> dict[str, Any]:
    """Of one call, whose arguments are held to their own schema or are any object."""
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": (held and function.get("parameters")) or {"type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _marker(text: str, tokenizer: Tokenizer) -> str:
    """A marker in a grammar: the token itself where it is no text."""
    token_id = tokenizer.id_of(text)
    return f"<[{token_id}]>" if token_id is not None and tokenizer.is_special(token_id) else json_text(text)


def _name(tool: Any, n: int) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type") != "function":
        raise RequestError(f"tools[{n}] must have the type function, and a function.", param="tools")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError(f"tools[{n}].function needs a name.", param="tools")
    if not isinstance(function.get("parameters") or {}, Mapping):
        raise RequestError(f"tools[{n}].function.parameters must be a JSON schema.", param="tools")
    return name
