"""Every field of a request: what is supported, with its type, and what is refused and why. docs/serving.md shows it.

A field that is null counts as not given, as in OpenAI's API. A field that is neither listed as supported nor as refused
is unknown, and refused as well.
"""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from piston.serving.errors import RequestError

Meta = msgspec.Meta
Text = Annotated[str, Meta(min_length=1)]
Identifier = Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,128}$")]
Json = dict[str, Any]
Body = TypeVar("Body", bound=msgspec.Struct)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False

    def __post_init__(self) -> None:
        if self.include_obfuscation or self.continuous_usage_stats:
            raise ValueError("include_obfuscation and continuous_usage_stats are not supported; leave them out")


class Options(msgspec.Struct, kw_only=True):
    """What every endpoint that generates text takes. Options of sampling are checked by Sampling itself."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    max_tokens: Annotated[int | UnsetType, Meta(description="default: see below")] = UNSET
    min_tokens: int | UnsetType = UNSET
    temperature: Annotated[float | UnsetType, Meta(description="0 is greedy; default: the checkpoint's, or 1")] = UNSET
    top_p: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    min_p: float | UnsetType = UNSET
    typical_p: float | UnsetType = UNSET
    repetition_penalty: float | UnsetType = UNSET
    presence_penalty: float | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    no_repeat_ngram_size: int | UnsetType = UNSET
    logit_bias: dict[str, float] | UnsetType = UNSET
    bad_words: list[str] | UnsetType = UNSET
    stop: str | list[str] | UnsetType = UNSET
    stop_token_ids: list[int] | UnsetType = UNSET
    include_stop_str_in_output: bool | UnsetType = UNSET
    ignore_eos: bool | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    n: int | UnsetType = UNSET
    prompt_lookup_num_tokens: Annotated[int | UnsetType, Meta(description="guesses to verify; same text")] = UNSET
    stream: bool = False
    stream_options: StreamOptions | UnsetType = UNSET
    structured_outputs: Annotated[Json | UnsetType, Meta(description="one of json, regex, choice, grammar")] = UNSET
    guided_json: Json | str | UnsetType = UNSET
    guided_regex: Text | UnsetType = UNSET
    guided_choice: list[Text] | UnsetType = UNSET
    guided_grammar: Annotated[Text | UnsetType, Meta(description="in Lark's form")] = UNSET
    cache_salt: Annotated[Text | UnsetType, Meta(description="prefixes are shared within one salt only")] = UNSET
    request_id: Annotated[Identifier | UnsetType, Meta(description="becomes part of the answer's id")] = UNSET
    user: Annotated[str | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET
    metadata: Annotated[Json | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET
    safety_identifier: Annotated[str | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET
    prompt_cache_key: Annotated[str | UnsetType, Meta(description="accepted: prefixes are found without it")] = UNSET


class ChatRequest(Options, kw_only=True):
    """/v1/chat/completions."""

    messages: Annotated[list[Json], Meta(min_length=1, description="text alone; content may be parts of text")]
    max_completion_tokens: Annotated[int | UnsetType, Meta(description="the same as max_tokens")] = UNSET
    logprobs: bool | UnsetType = UNSET
    top_logprobs: int | UnsetType = UNSET
    response_format: Annotated[Json | UnsetType, Meta(description="text, json_object or json_schema")] = UNSET
    tools: Annotated[list[Json] | UnsetType, Meta(description="functions, where the chat template has them")] = UNSET
    tool_choice: Annotated[str | Json | UnsetType, Meta(description="auto, none, required, or a function")] = UNSET
    chat_template_kwargs: Annotated[Json | UnsetType, Meta(description="variables of the template")] = UNSET
    reasoning_effort: Annotated[str | UnsetType, Meta(description="where the chat template reads it")] = UNSET


class CompletionRequest(Options, kw_only=True):
    """/v1/completions."""

    prompt: Annotated[str | list[Any], Meta(description="text, token ids, or a list of such")]
    echo: bool | UnsetType = UNSET
    logprobs: Annotated[int | UnsetType, Meta(description="number of likeliest tokens; 0 for the chosen alone")] = UNSET


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """/v1/responses, without anything that is stored."""

    model: Annotated[str, Meta(description="one of /v1/models")]
    input: Annotated[str | list[Any], Meta(description="text, or a list of messages of text")]
    instructions: Annotated[str | UnsetType, Meta(description="the system message")] = UNSET
    max_output_tokens: int | UnsetType = UNSET
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    stream: bool = False
    text: Annotated[Json | UnsetType, Meta(description="format: text, json_object or json_schema")] = UNSET
    reasoning: Annotated[Json | UnsetType, Meta(description="effort, where the chat template reads it")] = UNSET
    chat_template_kwargs: Annotated[Json | UnsetType, Meta(description="variables of the template")] = UNSET
    cache_salt: Annotated[Text | UnsetType, Meta(description="prefixes are shared within one salt only")] = UNSET
    request_id: Annotated[Identifier | UnsetType, Meta(description="becomes part of the answer's id")] = UNSET
    user: Annotated[str | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET
    metadata: Annotated[Json | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET
    safety_identifier: Annotated[str | UnsetType, Meta(description="accepted; nothing depends on it")] = UNSET
    prompt_cache_key: Annotated[str | UnsetType, Meta(description="accepted: prefixes are found without it")] = UNSET


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """/tokenize: either a prompt or messages."""

    model: str | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    messages: list[Json] | UnsetType = UNSET
    tools: list[Json] | UnsetType = UNSET
    chat_template_kwargs: Json | UnsetType = UNSET
    add_special_tokens: Annotated[bool, Meta(description="of a prompt; a chat template writes its own")] = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """/detokenize."""

    model: str | UnsetType = UNSET
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that is known and not supported; values that ask for nothing are accepted."""

    reason: str
    harmless: tuple[Any, ...] = ()


_NEITHER = "there is no such mechanism"
REFUSED_OPTIONS = {
    "best_of": Refused("all n answers are returned; use n", (1,)),
    "use_beam_search": Refused("there is no beam search", (False,)),
    "length_penalty": Refused("there is no beam search", (1, 1.0)),
    "early_stopping": Refused("there is no beam search", (False,)),
    "skip_special_tokens": Refused("special tokens are never text", (True,)),
    "spaces_between_special_tokens": Refused("special tokens are never text", (True,)),
    "prompt_logprobs": Refused("use /v1/completions with echo and logprobs"),
    "return_token_ids": Refused("use logprobs"),
    "return_tokens_as_token_ids": Refused(_NEITHER, (False,)),
    "allowed_token_ids": Refused("use structured_outputs or logit_bias"),
    "truncate_prompt_tokens": Refused("a prompt is never cut"),
    "priority": Refused("requests are served in the order they come", (0,)),
    "thinking_token_budget": Refused(_NEITHER),
    "logits_processors": Refused(_NEITHER, ([],)),
    "guided_decoding_backend": Refused("llguidance is the only one", ("auto", "guidance", "llguidance")),
    "guided_whitespace_pattern": Refused(_NEITHER),
    "store": Refused("answers are not stored", (False,)),
    "service_tier": Refused("there is one tier", ("auto", "default")),
    "moderation": Refused(_NEITHER),
    "prompt_cache_options": Refused(_NEITHER),
    "prompt_cache_retention": Refused("prefixes are kept in memory as long as there is room", ("in_memory",)),
}
REFUSED_CHAT = {
    "audio": Refused("the model writes text"),
    "modalities": Refused("the model writes text", (["text"],)),
    "prediction": Refused("use prompt_lookup_num_tokens"),
    "function_call": Refused("use tool_choice"),
    "functions": Refused("use tools"),
    "verbosity": Refused(_NEITHER),
    "parallel_tool_calls": Refused("the model decides how many calls it writes", (True,)),
    "include_reasoning": Refused("reasoning is always returned", (True,)),
    "web_search_options": Refused(_NEITHER),
    "echo": Refused("a chat has no text to repeat", (False,)),
    "add_generation_prompt": Refused("an answer is always begun", (True,)),
    "continue_final_message": Refused("an answer is always begun", (False,)),
    "add_special_tokens": Refused("the chat template writes its own", (False,)),
    "chat_template": Refused("the server runs its bundle's own template alone"),
    "documents": Refused("use chat_template_kwargs"),
}
REFUSED_COMPLETION = {
    "suffix": Refused("text is not filled in"),
    "response_format": Refused("use structured_outputs", ({"type": "text"},)),
    "add_special_tokens": Refused("send token ids instead", (True,)),
}
_STATELESS = "answers are not stored"
REFUSED_RESPONSES = {
    **{name: REFUSED_OPTIONS[name] for name in ("service_tier", "moderation", "prompt_cache_options")},
    "prompt_cache_retention": REFUSED_OPTIONS["prompt_cache_retention"],
    "store": Refused(_STATELESS, (False,)),
    "previous_response_id": Refused(_STATELESS),
    "conversation": Refused(_STATELESS),
    "prompt": Refused(_STATELESS),
    "background": Refused(_STATELESS, (False,)),
    "background_options": Refused(_STATELESS),
    "context_management": Refused(_NEITHER, ([],)),
    "access_programs": Refused(_NEITHER),
    "image": Refused("the model reads and writes text"),
    "include": Refused(_NEITHER, ([],)),
    "tools": Refused("use /v1/chat/completions", ([],)),
    "tool_choice": Refused("use /v1/chat/completions", ("auto", "none")),
    "max_tool_calls": Refused("use /v1/chat/completions"),
    "parallel_tool_calls": REFUSED_CHAT["parallel_tool_calls"],
    "top_logprobs": Refused("use /v1/chat/completions", (0,)),
    "truncation": Refused("a prompt is never cut", ("disabled",)),
    "stream_options": Refused(_NEITHER, ({"include_obfuscation": False},)),
}
REFUSED: dict[type, dict[str, Refused]] = {
    ChatRequest: REFUSED_OPTIONS | REFUSED_CHAT,
    CompletionRequest: REFUSED_OPTIONS | REFUSED_COMPLETION,
    ResponsesRequest: REFUSED_RESPONSES,
    TokenizeRequest: {"continue_final_message": REFUSED_CHAT["continue_final_message"]},
    DetokenizeRequest: {},
}


def read(body: bytes, kind: type[Body], *, lenient: bool) -> tuple[Body, list[str]]:
    """A request, and with `lenient` the names of the fields that are ignored.

    Raises:
        RequestError: it is no JSON, or a field is unknown, not supported, or of the wrong type.
    """
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise RequestError(f"The body is no JSON: {problem}.") from None
    if not isinstance(given, dict):
        raise RequestError("The body must be a JSON object.")
    known, refused, ignored = {field.name for field in msgspec.structs.fields(kind)}, REFUSED[kind], []
    kept = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in known:
            kept[name] = value
        elif name not in refused or not _is_harmless(value, refused[name]):
            if not lenient:
                reason = refused[name].reason if name in refused else "it is no field of this endpoint"
                raise RequestError(
                    f"{name} is not supported: {reason}; leave it out.", param=name, code="unsupported_parameter"
                )
            ignored.append(name)
    try:
        return msgspec.convert(kept, kind), ignored
    except (msgspec.ValidationError, RecursionError) as problem:
        message, _, path = str(problem).partition(" - at `$")
        param = path.rstrip("`").removeprefix(".") or None
        raise RequestError(f"{param or 'The request'}: {message}.", param=param) from None


def _is_harmless(value: Any, refused: Refused) -> bool:
    return any(value == harmless and type(value) is type(harmless) for harmless in refused.harmless)
