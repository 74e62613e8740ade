"""The prompts whose greedy answers are compared: a short varied list, or the user's own file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.data_files import field_of, read_text, records_of
from piston.core.errors import MisuseError
from piston.runtime.text.chat_template import ChatTemplate, checked_messages, text_of
from piston.runtime.text.tokenizer import Tokenizer

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue, or the messages of a chat; without a chat template the last message is the text."""

    text: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def shown(self) -> str:
        """The prompt as reports print it."""
        return text_of(self.messages[-1]) if self.messages else self.text

    def token_ids(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
        """The token ids that the engine reads."""
        if self.messages and template is not None:
            return template.encode(self.messages, tokenizer)
        return tokenizer.encode(self.shown)


def chat(question: str) -> Prompt:
    """A conversation of one message."""
    return Prompt(messages=({"role": "user", "content": question},))


DEFAULT_PROMPTS = (
    Prompt("The capital of France is"),
    Prompt("Once upon a time, in a village by the sea, there lived a"),
    Prompt("Photosynthesis is the process by which"),
    Prompt("def fibonacci(n):\n    "),
    Prompt("SELECT name, COUNT(*) FROM orders WHERE"),
    Prompt("La Révolution française a commencé en"),
    Prompt("17 + 25 = 42\n31 + 46 = 77\n58 + 13 ="),
    Prompt("Shopping list:\n1. milk\n2. eggs\n3."),
    Prompt("Monday, Tuesday, Wednesday,"),
    chat("What is the capital of France?"),
    chat("Explain in two sentences why the sky is blue."),
    chat("Write a Python function that reverses a string."),
)


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    r"""One prompt on each line, or the {"prompt": ...}, {"messages": [...]} or strings of records (see data_files).

    Raises:
        MisuseError: the file is missing, not UTF-8, without a prompt, or a record is none of these.
    """
    text = read_text(path)
    records = records_of(text, path)
    if records is None:
        prompts = [Prompt(line.rstrip("\r")) for line in text.split("\n") if line.strip()]
    else:
        prompts = [_prompt(field_of(record, ("prompt", "messages"), where), where) for where, record in records]
    if not prompts:
        raise MisuseError(f"{path} holds no prompt; write one on each line.")
    return tuple(prompts)


def _prompt(value: object, where: str) -> Prompt:
    if isinstance(value, str) and value:
        return Prompt(value)
    if isinstance(value, list) and value:
        try:
            checked_messages(value)
        except MisuseError as problem:
            raise MisuseError(f"{where}: {problem}") from None
        return Prompt(messages=tuple(value))
    raise MisuseError(f'{where}: a prompt is {{"prompt": TEXT}}, {{"messages": [...]}} or a string that is not empty.')
