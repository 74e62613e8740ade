"""Chat messages to the prompt a model was trained on, by the Jinja template of its checkpoint.

Renders what `apply_chat_template` of transformers renders. Knows no tokens: the result is text, which
already has the special tokens a prompt begins with.
"""

import functools
import json
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from piston.core.errors import MisuseError, TemplateError

if TYPE_CHECKING:
    from piston.runtime.text.template_sandbox import Sandbox


class ChatTemplate:
    """A chat template, compiled when it is first used; may be used from several threads.

    Runs in a sandbox with bounds on time and size, which `template_sandbox` lists.

    Args:
        source: the Jinja source, or several by name, of which "default" is taken.
        special_tokens: what the template may call bos_token, eos_token and so on.

    Raises:
        TemplateError: there is no default one.
    """

    def __init__(self, source: str | Mapping[str, str], *, special_tokens: Mapping[str, str]) -> None:
        if not isinstance(source, str):
            if "default" not in source:
                raise TemplateError(f"No chat template is named 'default', only {sorted(source)}; pass one of them")
            source = source["default"]
        self._special_tokens = dict(special_tokens)
        self._source = source

    def check(self) -> None:
        """Compile it now; raises TemplateError where the source has a syntax error."""
        _ = self._compiled

    @functools.cached_property
    def _compiled(self) -> "tuple[Sandbox, Any]":
        """The sandbox and the template in it: plain text need not wait the 20 ms that importing Jinja takes."""
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
        """Turn messages into a prompt.

        Args:
            messages: mappings with a "role" and a "content", oldest first; beside "tool_calls" the content
                may be missing.
            add_generation_prompt: end with what begins an answer.
            tools: JSON schemas of the functions the model may call.
            variables: whatever else the template reads, such as enable_thinking; all values are plain JSON.

        Raises:
            MisuseError: the messages are not of that form, or a value is not JSON.
            TemplateError: the template is broken, refused the messages, failed, or took too much time or space.
        """
        _check_messages(messages)
        given = {"messages": list(messages), "tools": tools, **variables}
        values = {"documents": None} | self._special_tokens | {name: _plain(given[name], name) for name in given}
        sandbox, template = self._compiled
        sandbox.allowance.renew()
        try:
            return str(template.render(values, add_generation_prompt=add_generation_prompt))
        except Exception as error:
            raise TemplateError(f"Chat template failed{_where(error)}: {_what(error)}") from error


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise MisuseError(f"Messages must be a list of at least one message, not {messages!r:.80}")
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise MisuseError(f"messages[{n}] must be a mapping, not {message!r:.80}")
        if not isinstance(message.get("role"), str):
            raise MisuseError(f'messages[{n}] needs a "role", such as "user": {message!r:.80}')
        if "content" not in message and "tool_calls" not in message:
            raise MisuseError(f'messages[{n}] needs a "content": {message!r:.80}')
        if not isinstance(message.get("content"), str | list | tuple | None):
            raise MisuseError(f"messages[{n}] has a content that is neither text nor a list: {message!r:.80}")


def _plain(value: Any, name: str) -> Any:
    """A copy made of plain JSON types alone: no method of the caller's objects is within reach of a template.

    Raises:
        MisuseError: something in it is no JSON.
    """
    try:
        return json.loads(json.dumps(value, default=_to_dict))
    except (TypeError, ValueError, RecursionError) as error:
        raise MisuseError(f"{name} must consist of plain JSON values: {_what(error)}") from error


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
