"""Fields of /v1/decisions, as openai-python 3.57 sends them: text and JSON, no images."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from piston.serving.fields import Json, Meta, Refused, Text
from piston.serving.generation_fields import REFUSED_OPTIONS

MOST_QUESTIONS, MOST_CHOICES = 400, 255


class InputText(msgspec.Struct, tag_field="type", tag="input_text", forbid_unknown_fields=True, kw_only=True):
    """A part of text. A breakpoint is accepted: prefixes are found without it."""

    text: str
    prompt_cache_breakpoint: Json | None = None


class OutputText(msgspec.Struct, tag_field="type", tag="output_text", forbid_unknown_fields=True, kw_only=True):
    """What an assistant said."""

    text: str


class Refusal(msgspec.Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True, kw_only=True):
    """What an assistant would not say."""

    refusal: str


class InputJson(msgspec.Struct, tag_field="type", tag="input_json", forbid_unknown_fields=True, kw_only=True):
    """An object, or a list of objects."""

    data: Json | list[Json]


Part = InputText | InputJson | OutputText | Refusal


class Message(msgspec.Struct, tag_field="type", tag="message", forbid_unknown_fields=True, kw_only=True):
    """One message of a conversation that is judged."""

    role: Annotated[str, Meta(pattern="^(user|developer|system|assistant)$")]
    content: str | list[Part]
    phase: str | None = None


class FunctionCall(msgspec.Struct, tag_field="type", tag="function_call", forbid_unknown_fields=True, kw_only=True):
    """A call, with its arguments as JSON."""

    name: str
    call_id: str
    arguments: str
    id: str | None = None
    namespace: str | None = None
    status: str | None = None


class CustomCall(msgspec.Struct, tag_field="type", tag="custom_tool_call", forbid_unknown_fields=True, kw_only=True):
    """A call of a tool that takes text."""

    name: str
    call_id: str
    input: str
    id: str | None = None
    namespace: str | None = None
    status: str | None = None


class _Output(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a tool gave."""

    call_id: str
    output: str | list[InputText]
    id: str | None = None
    status: str | None = None


class FunctionOutput(_Output, tag_field="type", tag="function_call_output"):
    """What a function gave."""


class CustomOutput(_Output, tag_field="type", tag="custom_tool_call_output"):
    """What a tool that takes text gave."""


Item = Message | FunctionCall | CustomCall | FunctionOutput | CustomOutput
Instructions = Text | list[InputText | InputJson]


class Choice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One of the answers to choose from."""

    value: str | bool
    description: str | None = None


class Level(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One level of a scale."""

    label: str
    description: str | None = None


class Predicate(msgspec.Struct, tag_field="type", tag="predicate", forbid_unknown_fields=True, kw_only=True):
    """Is a statement true?"""

    instructions: Instructions
    name: str | None = None


class ChoiceQuestion(msgspec.Struct, tag_field="type", tag="choice", forbid_unknown_fields=True, kw_only=True):
    """Which of these is it?"""

    instructions: Instructions
    choices: Annotated[list[Choice], Meta(min_length=2, max_length=MOST_CHOICES)]
    name: str | None = None


class ScoreQuestion(msgspec.Struct, tag_field="type", tag="score", forbid_unknown_fields=True, kw_only=True):
    """How much is it, on levels from the lowest?"""

    instructions: Instructions
    levels: Annotated[list[Level], Meta(min_length=2, max_length=MOST_CHOICES)]
    name: str | None = None


Question = Predicate | ChoiceQuestion | ScoreQuestion


class DecisionsRequest(msgspec.Struct, kw_only=True):
    """/v1/decisions."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    input: Annotated[Text | list[Any], Meta(description="text, or messages, calls and their outputs")]
    questions: Annotated[
        list[Question],
        Meta(min_length=1, max_length=MOST_QUESTIONS, description="each a predicate, a choice or a score"),
    ]
    cache_salt: Annotated[Text | UnsetType, Meta(description="prefixes are shared within one salt only")] = UNSET
    safety_identifier: Annotated[str | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET
    prompt_cache_key: Annotated[str | UnsetType, Meta(description="accepted: prefixes are found without it")] = UNSET


REFUSED = {
    "prompt_cache_options": REFUSED_OPTIONS["prompt_cache_options"],
    "stream": Refused("an answer is whole", (False,)),
}
