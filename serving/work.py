"""A checked request: what is generated, and in which form it is answered."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import UNSET

from piston.runtime.generate.generation import Generation, prepare
from piston.runtime.model import LanguageModel
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import Constraint
from piston.runtime.tasks.text2text_generation import TextToText
from piston.serving.beams import OF_SAMPLES, beams_of
from piston.serving.endpoint import Caller
from piston.serving.errors import RequestError
from piston.serving.generation_fields import ChatRequest, CompletionRequest, Options, StreamOptions
from piston.serving.output_parser import END_THINK, THINK, Markers, OutputParser
from piston.serving.prompts import chat_ids, plain_ids
from piston.serving.structured import Grammars, grammar_of
from piston.serving.tools import Tools, tool_grammar, tools_of

# Fields of a request that mean what the option of sampling of the same name means.
SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)} & set(Options.__struct_fields__) - {
    "max_tokens"
}
RECOMMENDED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
MARKER_TOKENS = 32  # at the end of a prompt that surely hold a marker and white space
COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a request comes to: rows to generate, `n` for each prompt."""

    generations: list[Generation]
    new_parser: Callable[[], OutputParser] = lambda: OutputParser(Markers())  # one for each row
    stream: bool
    include_usage: bool
    continuous_usage: bool = False
    only_prompt: bool = False  # max_tokens is 0: the echoed prompt is the answer

    @property
    def num_choices(self) -> int:
        """Answers of all rows."""
        return sum(generation.request.num_answers for generation in self.generations)


def chat_work(model: LanguageModel, grammars: Grammars, request: ChatRequest, caller: Caller) -> Work:
    """Rows of a chat.

    Raises:
        RequestError, MisuseError, TemplateError: a field is wrong, or the template refuses the messages.
    """
    began = time.perf_counter()
    markers = Markers.of("" if model.template is None else model.template.source)
    tools = tools_of(request, markers)
    offered = None if tools is None else tools.offered
    prompt = chat_ids(model, request.messages, tools=offered, variables=_variables(model, request))
    options = options_of(model, request)
    options["max_tokens"] = _given(request.max_completion_tokens, _given(request.max_tokens, _room(model, prompt)))
    options["logprobs"] = _given(request.logprobs, False)
    options["top_logprobs"] = _given(request.top_logprobs, 0)
    is_thinking = markers.thinks and ends_in_reasoning(model, prompt)
    work = _work(
        model,
        [prompt],
        options,
        request,
        caller,
        began,
        constrain=_constraint(model, grammars, request, tools, markers, is_thinking=is_thinking),
    )
    special = {model.tokenizer.id_of(text) for text in markers.texts}
    shown = frozenset(token_id for token_id in special if token_id is not None)
    for generation in work.generations:
        generation.shown_ids = shown
    new_parser = partial(OutputParser, markers, is_thinking=is_thinking, tools=tools is not None)
    return dataclasses.replace(work, new_parser=new_parser)


def completion_work(model: LanguageModel, grammars: Grammars, request: CompletionRequest, caller: Caller) -> Work:
    """Rows of plain prompts; errors as of `chat_work`."""
    began = time.perf_counter()
    prompts = plain_ids(model, request.prompt)
    options = options_of(model, request)
    options["echo"] = _given(request.echo, False)
    options["max_tokens"] = _given(request.max_tokens, COMPLETION_TOKENS)
    if request.logprobs is not UNSET:
        options |= {"logprobs": True, "top_logprobs": request.logprobs}
    if only_prompt := bool(options["echo"] and options["max_tokens"] == 0):
        options["max_tokens"] = 1
    constrain = _constraint(model, grammars, request, None, Markers(), is_thinking=False)
    return _work(model, prompts, options, request, caller, began, only_prompt=only_prompt, constrain=constrain)


def _work(  # noqa: PLR0913
    model: LanguageModel,
    prompts: list[list[int]],
    options: dict[str, Any],
    request: Options,
    caller: Caller,
    began: float,
    *,
    only_prompt: bool = False,
    constrain: Callable[[], Constraint] | None = None,
) -> Work:
    sampling = SamplingParams.from_mapping(options)
    ends = model.manifest.tokenizer.eos_token_ids
    generations = prepare(prompts, sampling, model.tokenizer, ends, model.verification, constrain)
    return work_of(generations, request, caller, began, only_prompt=only_prompt)


def work_of(
    generations: list[Generation], request: Options, caller: Caller, began: float, *, only_prompt: bool = False
) -> Work:
    """The rows of a request that came at `began`, a time.perf_counter()."""
    salt, beams = f"{caller.salt}:{_given(request.cache_salt, '')}", beams_of(request)
    for generation in generations:
        generation.started, generation.tokenizing = began, time.perf_counter() - began
        generation.request.deadline, generation.request.cache_salt = caller.deadline, salt
        generation.request.beams = beams
    stream_options = _given(request.stream_options, StreamOptions())
    return Work(
        generations=generations,
        stream=request.stream,
        include_usage=stream_options.include_usage,
        continuous_usage=stream_options.continuous_usage_stats,
        only_prompt=only_prompt,
    )


def _constraint(
    model: LanguageModel,
    grammars: Grammars,
    request: Options,
    tools: Tools | None,
    markers: Markers,
    *,
    is_thinking: bool,
) -> Callable[[], Constraint] | None:
    """What makes the constraint of each answer; None where they are free.

    Raises:
        RequestError: two are asked for, one cannot be enforced, or it cannot be told where reasoning ends.
    """
    grammar = grammar_of(request)
    if tools is not None and tools.needs_grammar:
        if grammar is not None:
            raise RequestError("The answer cannot be held to a grammar and to tools at once; send one of them.")
        assert markers.tools is not None
        grammar = tool_grammar(tools, markers.tools, model.tokenizer)
    if grammar is None:
        return None
    if request.ignore_eos is True:
        raise RequestError("ignore_eos would go on behind the end of the grammar; leave it out.", param="ignore_eos")
    after = model.tokenizer.id_of(END_THINK) if is_thinking else None
    if is_thinking and after is None:
        raise RequestError(
            f"The answer begins with reasoning, and {END_THINK} is no token of this model, behind which a grammar "
            "could begin; switch reasoning off in chat_template_kwargs."
        )
    return partial(grammars.compile(grammar).begin, after)


def ends_in_reasoning(model: LanguageModel, prompt: list[int]) -> bool:
    """Whether the template itself has begun the reasoning of the answer."""
    text = model.tokenizer.decode(prompt[-MARKER_TOKENS:], skip_special_tokens=False)
    return text.rstrip().endswith(THINK)


def options_of(
    model: LanguageModel | TextToText, request: Options, *, default_temperature: float | None = 1.0
) -> dict[str, Any]:
    """Options of sampling over those that the checkpoint's authors recommend.

    Of a beam search n is the number of answers that are found, and what is recommended for samples is left out.
    """
    stated, is_search = model.manifest.generation, request.use_beam_search is True
    excluded = OF_SAMPLES if is_search else frozenset()
    recommended = {name: stated[name] for name in RECOMMENDED if name in stated and name not in excluded}
    if not is_search:
        recommended = {"temperature": default_temperature} | recommended
    names = SAMPLING - {"n"} if is_search else SAMPLING
    given = {name: getattr(request, name) for name in names if getattr(request, name) is not UNSET}
    return SamplingParams.from_mapping(recommended).to_json() | given


def _variables(model: LanguageModel, request: ChatRequest) -> dict[str, Any]:
    variables = dict(_given(request.chat_template_kwargs, {}))
    if request.reasoning_effort is not UNSET:
        if model.template is None or "reasoning_effort" not in model.template.source:
            raise RequestError(
                "reasoning_effort is not supported: the chat template of this model does not read it; leave it out.",
                param="reasoning_effort",
                code="unsupported_parameter",
            )
        variables["reasoning_effort"] = request.reasoning_effort
    return variables


def _room(model: LanguageModel, prompt: list[int]) -> int:
    """Tokens that fit behind a prompt; at least one, so that a prompt that is too long is told so."""
    return max(model.engine.cache.capacity - len(prompt), 1)


def _given(value: Any, default: Any) -> Any:
    return default if value is UNSET else value
