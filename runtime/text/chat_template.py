"""Renders chat messages to a prompt with the Jinja template of the checkpoint.

The result is that of `apply_chat_template` in transformers: text that already has the special tokens of a prompt.
`encode` makes token ids, in which messages cannot forge a turn: see `sanitize_control_tokens`.
"""

import functools
import json
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from piston.core.errors import MisuseError, TemplateError
from piston.runtime.text.control_tokens import any_of, control_tokens

if TYPE_CHECKING:
    from piston.runtime.text.template_sandbox import Sandbox
    from piston.runtime.text.tokenizer import Tokenizer

# Private-use characters that are put around control tokens in messages while a template runs.
MARKS = _START, _END = "\U000f0000", "\U000f0001"
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field; the first is what templates read


class ChatTemplate:
    """A chat template, compiled when it is first used; may be used from several threads.

    Runs in a sandbox with bounds on time and size, which `template_sandbox` lists.

    Args:
        source: the Jinja source, or several by name, of which "default" is taken.
        special_tokens: values of bos_token, eos_token and other variables of the template.

    Raises:
        TemplateError: there is no default one.
    """

    def __init__(self, source: str | Mapping[str, str], *, special_tokens: Mapping[str, str]) -> None:
        if not isinstance(source, str):
            if "default" not in source:
                raise TemplateError(f"No chat template is named 'default'; pass one of {sorted(source)}")
            source = source["default"]
        self._special_tokens = dict(special_tokens)
        self._source = source

    @property
    def source(self) -> str:
        """The Jinja source."""
        return self._source

    def check(self) -> None:
        """Compile it now; raises TemplateError where the source has a syntax error."""
        _ = self._compiled

    @functools.cached_property
    def _compiled(self) -> "tuple[Sandbox, Any]":
        """The sandbox and its template, made on first use, as importing Jinja takes 20 ms."""
        from piston.runtime.text.template_sandbox import Sandbox

        sandbox = Sandbox()
        try:
            return sandbox, sandbox.compile_template(self._source)
        except Exception as error:
            raise TemplateError(f"Chat template is broken{_where(error)}: {_what(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Render messages to a prompt. Control tokens in messages stay; `encode` turns them into ordinary text.

        Args:
            messages: mappings with a "role" and a "content" (text, or a list of parts if the template takes such),
                oldest first; with "tool_calls" or reasoning the content may be missing. A key whose value is None
                counts as missing.
            add_generation_prompt: end with the beginning of an assistant turn.
            tools: JSON schemas of the functions the model may call.
            variables: other variables of the template, such as enable_thinking; all values are plain JSON.

        Raises:
            MisuseError: the messages are not of that form, or a value is not JSON.
            TemplateError: the template is broken, refused the messages, failed, or took too much time or space.
        """
        given = {"messages": checked_messages(messages), "tools": tools, **variables}
        return self._render(_plain(given), add_generation_prompt=add_generation_prompt)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: "Tokenizer",
        *,
        sanitize_control_tokens: bool = True,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Render messages to the token ids of a prompt.

        Args:
            messages: as for `render`.
            tokenizer: of the same checkpoint.
            sanitize_control_tokens: encode control tokens in messages, tools and variables as ordinary text, so that
                only the template itself writes control tokens, as the option of that name in transformers does.
                Control tokens are the special tokens and the added tokens that the template names; those that are not
                special, such as <think>, stay tokens in the assistant's messages: the model wrote them.
                Names that the template builds control tokens from, such as roles, are not checked.
            add_generation_prompt: as for `render`.
            tools: as for `render`.
            variables: as for `render`.

        Raises:
            MisuseError, TemplateError: as `render` does; MisuseError also for a control token in a message that the
                tokenizer cannot write as ordinary text.
        """
        given = _plain({"messages": checked_messages(messages), "tools": tools, **variables})
        if not sanitize_control_tokens:
            text = self._render(given, add_generation_prompt=add_generation_prompt)
            return tokenizer.encode(text, add_special_tokens=False)
        marked = self._marked(given, tokenizer)
        text = self._render(marked, add_generation_prompt=add_generation_prompt)
        # Text, marked token, text, marked token, ... text; None for a mark without its counterpart.
        pieces = re.split(f"{_START}({any_of(tokenizer.added_tokens)}){_END}|[{_START}{_END}]", text)
        parts = [(piece, number % 2 == 1) for number, piece in enumerate(pieces) if piece]
        ids, forged = tokenizer.encode_parts(parts)
        if forged is not None:
            raise MisuseError(
                f"A message contains {forged!r}, which this tokenizer cannot encode as ordinary text; leave it out, or "
                "trust the messages with sanitize_control_tokens=False (--no-sanitize-control-tokens)."
            )
        return ids

    def _render(self, given: dict[str, Any], *, add_generation_prompt: bool) -> str:
        values = {"documents": None} | self._special_tokens | given
        sandbox, template = self._compiled
        sandbox.allowance.renew()
        try:
            return str(template.render(values, add_generation_prompt=add_generation_prompt))
        except Exception as error:
            raise TemplateError(f"Chat template failed{_where(error)}: {_what(error)}") from error

    def _marked(self, given: dict[str, Any], tokenizer: "Tokenizer") -> dict[str, Any]:
        """A copy in which marks surround every control token."""
        tokens = tokenizer.added_tokens
        special = re.compile(any_of(token for token, is_special in tokens.items() if is_special))
        control = re.compile(any_of(control_tokens(tokens, self._literals)))
        marked: dict[str, Any] = _mark({name: value for name, value in given.items() if name != "messages"}, control)
        messages = given["messages"]
        marked["messages"] = [_mark(item, special if item["role"] == "assistant" else control) for item in messages]
        return marked

    @functools.cached_property
    def _literals(self) -> str:
        """The texts that the template itself may write, joined by NUL."""
        sandbox, _ = self._compiled
        return "\0".join(sandbox.literals(self._source))


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be missing or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = [part if isinstance(part, Mapping) else {"text": part} for part in content or ()]
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages without keys whose value is None, which templates would print, and with all names of reasoning.

    Raises:
        MisuseError: they are not messages.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise MisuseError(f"Messages must be a list of at least one message, not {messages!r:.80}")
    checked = []
    for n, given in enumerate(messages):
        if not isinstance(given, Mapping):
            raise MisuseError(f"messages[{n}] must be a mapping, not {given!r:.80}")
        message = {key: value for key, value in given.items() if value is not None}
        if not isinstance(message.get("role"), str):
            raise MisuseError(f'messages[{n}] needs a "role", such as "user": {given!r:.80}')
        if not message.keys() & {"content", "tool_calls", *_REASONING}:
            raise MisuseError(f'messages[{n}] needs a "content": {given!r:.80}')
        if not isinstance(message.get("content", ""), str | list | tuple):
            raise MisuseError(f"messages[{n}] has a content that is neither text nor a list: {given!r:.80}")
        if (reasoning := next((message[key] for key in _REASONING if key in message), None)) is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        checked.append(message)
    return checked


def _mark(value: Any, tokens: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return tokens.sub(f"{_START}\\g<0>{_END}", value.replace(_START, "").replace(_END, ""))
    if isinstance(value, dict):
        return {_mark(key, tokens): _mark(item, tokens) for key, item in value.items()}
    return [_mark(item, tokens) for item in value] if isinstance(value, list) else value


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of plain JSON types only, so that a template cannot reach methods of the caller's objects.

    Raises:
        MisuseError: a value is not JSON; the message names it.
    """
    plain = {}
    for name, value in given.items():
        try:
            plain[name] = json.loads(json.dumps(value, default=_to_dict))  # noqa: TID251 - not written
        except (TypeError, ValueError, RecursionError) as error:
            raise MisuseError(f"{name} must consist of plain JSON values: {_what(error)}") from error
    return plain


def _to_dict(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"not {type(value).__name__}")


def _where(error: Exception) -> str:
    """The line of the template an error comes from, as " at line 3", or nothing."""
    import jinja2

    if isinstance(error, jinja2.TemplateSyntaxError):
        return f" at line {error.lineno}"
    # Jinja rewrites tracebacks so that frames of compiled code stand at lines of the template.
    steps = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in steps if frame.f_code.co_filename == "<template>"]
    return f" at line {lines[-1]}" if lines else ""


def _what(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
