"""The prompts whose greedy answers are compared: a short varied list, or the user's own file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.errors import MisuseError
from piston.evaluation.corpus import as_text, json_lines, read_bytes
from piston.runtime.text.chat_template import ChatTemplate
from piston.runtime.text.tokenizer import Tokenizer

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to go on from, or the messages of a chat; without a chat template the last message is the text."""

    text: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def shown(self) -> str:
        """What a report prints for it."""
        return str(self.messages[-1].get("content", "")) if self.messages else self.text

    def token_ids(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
        """What the engine is given."""
        if self.messages and template is not None:
            return tokenizer.encode(template.render(self.messages), add_special_tokens=False)
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
    r"""One prompt on each line; in a .jsonl file {"prompt": ...}, {"messages": [...]} or a string.

    Raises:
        MisuseError: the file is missing, not UTF-8, without a prompt, or a line is none of these.
    """
    text = as_text(read_bytes(path), path)
    if path.suffix == ".jsonl":
        prompts = [_prompt(value, f"{path}, line {number}") for number, value in json_lines(text, path)]
    else:
        prompts = [Prompt(line.rstrip("\r")) for line in text.split("\n") if line.strip()]
    if not prompts:
        raise MisuseError(f"{path} holds no prompt; write one on each line.")
    return tuple(prompts)


def _prompt(value: object, where: str) -> Prompt:
    if isinstance(value, str) and value:
        return Prompt(value)
    if isinstance(value, dict) and isinstance(text := value.get("prompt"), str) and text:
        return Prompt(text)
    if isinstance(value, dict) and isinstance(messages := value.get("messages"), list) and messages:
        if all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
            return Prompt(messages=tuple(messages))
        raise MisuseError(f'{where}: each of the messages must be an object with a "role" and a "content".')
    raise MisuseError(f'{where}: a prompt is {{"prompt": TEXT}}, {{"messages": [...]}} or a string that is not empty.')
