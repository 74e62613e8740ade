"""What a request asks about, as token ids: messages through the chat template, or plain prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from piston.runtime.model import LanguageModel
from piston.runtime.text.chat_template import text_of
from piston.serving.errors import RequestError
from piston.serving.fields import parsed

ROLES = ("system", "developer", "user", "assistant", "tool")
KEYS = {
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "reasoning",
    "reasoning_content",
}
TEXT_PARTS = ("text", "input_text", "output_text")
RESERVED = {"messages", "tools", "add_generation_prompt", "sanitize_control_tokens", "documents"}


def chat_ids(
    model: LanguageModel,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a chat up to the start of the answer. Control tokens in the messages become ordinary text.

    Raises:
        RequestError: a message is not of OpenAI's form, or holds what is no text.
        TemplateError: the bundle has no template, or it refuses the messages.
    """
    if taken := RESERVED & set(variables or ()):
        raise RequestError(
            f"chat_template_kwargs must not set {min(taken)}; it has a field of its own.",
            param="chat_template_kwargs",
        )
    checked = [_message(message, n) for n, message in enumerate(messages)]
    given = {**(variables or {}), "add_generation_prompt": add_generation_prompt}
    return model.render(checked, tools=tools, **given)


def plain_ids(model: LanguageModel, prompt: str | Sequence[Any]) -> list[list[int]]:
    """Token ids of each prompt: one text, one list of ids, or a list of either.

    Raises:
        RequestError: it is none of these, or an id is not in the vocabulary.
    """
    if isinstance(prompt, str):
        return [model.encode(prompt)]
    known = [model.encode(item) if isinstance(item, str) else item for item in prompt]
    return id_lists(known, model.engine.vocab_size, "prompt")


def id_lists(given: Sequence[Any], vocab_size: int, name: str) -> list[list[int]]:
    """Lists of token ids, from one such list or a list of them; `name` is the field they come from.

    Raises:
        RequestError: they are neither, or an id is not in the vocabulary.
    """
    lists: list[Any] = [given] if given and all(_is_int(item) for item in given) else list(given)
    if not lists:
        raise RequestError(f"{name} is an empty list; send at least one text.", param=name)
    for n, ids in enumerate(lists):
        if not isinstance(ids, list) or not all(_is_int(item) for item in ids):
            raise RequestError(f"{name}[{n}] must be text or a list of token ids.", param=name)
        if wrong := [token_id for token_id in ids if not 0 <= token_id < vocab_size]:
            raise RequestError(f"{name}[{n}] has token {wrong[0]}; ids are 0 to {vocab_size - 1}.", param=name)
    return lists


def _message(message: Mapping[str, Any], n: int) -> dict[str, Any]:
    given = {key: value for key, value in message.items() if value is not None and value != []}
    where = f"messages[{n}]"
    if unknown := sorted(given.keys() - KEYS):
        raise RequestError(f"{where}.{unknown[0]} is not supported; leave it out.", param=where)
    if given.get("role") not in ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}.", param=where)
    if given["role"] == "developer":  # OpenAI's newer name
        given["role"] = "system"
    content = given.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") not in TEXT_PARTS:
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise RequestError(
                    f"{where}.content has a part of type {kind!r}; the model reads text alone.", param=where
                )
            if not isinstance(part.get("text"), str):
                raise RequestError(f"{where}.content has a part without a text.", param=where)
        given["content"] = text_of(given)
    if "tool_calls" in given:
        given["tool_calls"] = [
            _tool_call(call, f"{where}.tool_calls[{k}]") for k, call in enumerate(given["tool_calls"])
        ]
    return given


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """Templates read the arguments as an object; OpenAI's messages carry them as text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where} must have a function with a name.", param=where)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = parsed(arguments or "{}", f"{where}.function.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
