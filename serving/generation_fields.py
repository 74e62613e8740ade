"""Fields of requests to generate text: what is supported, with its type, and what is refused and why."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from piston.serving.fields import NO_MECHANISM, Identifier, Json, Meta, Refused, Text


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False  # vLLM's: every chunk has the usage so far

    def __post_init__(self) -> None:
        if self.include_obfuscation:
            raise ValueError("include_obfuscation is not supported; leave it out")


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
    use_beam_search: Annotated[bool | UnsetType, Meta(description="search for the n likeliest answers")] = UNSET
    best_of: Annotated[int | UnsetType, Meta(description="beams of the search, each a row; default: n, or 4")] = UNSET
    length_penalty: Annotated[float | UnsetType, Meta(description="of a search; above 0 for longer answers")] = UNSET
    early_stopping: Annotated[bool | str | UnsetType, Meta(description='of a search; true, false or "never"')] = UNSET
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
    parallel_tool_calls: Annotated[bool | UnsetType, Meta(description="false: at most one call")] = UNSET
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


REFUSED_OPTIONS = {
    "skip_special_tokens": Refused("special tokens are never text", (True,)),
    "spaces_between_special_tokens": Refused("special tokens are never text", (True,)),
    "prompt_logprobs": Refused("use /v1/completions with echo and logprobs"),
    "return_token_ids": Refused("use logprobs"),
    "return_tokens_as_token_ids": Refused(NO_MECHANISM, (False,)),
    "allowed_token_ids": Refused("use structured_outputs or logit_bias"),
    "truncate_prompt_tokens": Refused("a prompt is never cut"),
    "priority": Refused("requests are served in the order they come", (0,)),
    "thinking_token_budget": Refused(NO_MECHANISM),
    "logits_processors": Refused(NO_MECHANISM, ([],)),
    "guided_decoding_backend": Refused("llguidance is the only one", ("auto", "guidance", "llguidance")),
    "guided_whitespace_pattern": Refused(NO_MECHANISM),
    "store": Refused("answers are not stored", (False,)),
    "service_tier": Refused("there is one tier", ("auto", "default")),
    "moderation": Refused(NO_MECHANISM),
    "prompt_cache_options": Refused(NO_MECHANISM),
    "prompt_cache_retention": Refused("prefixes are kept in memory as long as there is room", ("in_memory",)),
}
REFUSED_CHAT = REFUSED_OPTIONS | {
    "audio": Refused("the model writes text"),
    "modalities": Refused("the model writes text", (["text"],)),
    "prediction": Refused("use prompt_lookup_num_tokens"),
    "function_call": Refused("use tool_choice"),
    "functions": Refused("use tools"),
    "verbosity": Refused(NO_MECHANISM),
    "include_reasoning": Refused("reasoning is always returned", (True,)),
    "web_search_options": Refused(NO_MECHANISM),
    "echo": Refused("a chat has no text to repeat", (False,)),
    "add_generation_prompt": Refused("an answer is always begun", (True,)),
    "continue_final_message": Refused("an answer is always begun", (False,)),
    "add_special_tokens": Refused("the chat template writes its own", (False,)),
    "chat_template": Refused("the server runs its bundle's own template alone"),
    "documents": Refused("use chat_template_kwargs"),
}
REFUSED_COMPLETION = REFUSED_OPTIONS | {
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
    "context_management": Refused(NO_MECHANISM, ([],)),
    "access_programs": Refused(NO_MECHANISM),
    "image": Refused("the model reads and writes text"),
    "include": Refused(NO_MECHANISM, ([],)),
    "tools": Refused("use /v1/chat/completions", ([],)),
    "tool_choice": Refused("use /v1/chat/completions", ("auto", "none")),
    "max_tool_calls": Refused("use /v1/chat/completions"),
    "parallel_tool_calls": Refused("use /v1/chat/completions", (True,)),
    "top_logprobs": Refused("use /v1/chat/completions", (0,)),
    "truncation": Refused("a prompt is never cut", ("disabled",)),
    "stream_options": Refused(NO_MECHANISM, ({"include_obfuscation": False},)),
}
