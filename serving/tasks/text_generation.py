"""Language models: chats, completions, responses."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp, Receive, Scope, Send

from piston.serving import decision_fields
from piston.serving.answers import Answers, ChatAnswers, CompletionAnswers
from piston.serving.decision_fields import DecisionsRequest
from piston.serving.decisions import decide
from piston.serving.endpoint import Call, Caller, Endpoint
from piston.serving.errors import RequestError, request_error
from piston.serving.event_stream import event, send_events, until_left
from piston.serving.fields import Json, Meta
from piston.serving.generation_fields import (
    REFUSED_CHAT,
    REFUSED_COMPLETION,
    REFUSED_RESPONSES,
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
)
from piston.serving.generation_thread import GenerationThread, Ticket
from piston.serving.metrics import GenerationMetrics, Metrics
from piston.serving.prompts import chat_ids
from piston.serving.responses import ResponsesAnswers, responses_work
from piston.serving.served import Served
from piston.serving.settings import Settings
from piston.serving.structured import Grammars, in_compiler, may_need_grammar
from piston.serving.tokenizing import DetokenizeRequest, detokenize, tokenized
from piston.serving.work import Work, chat_work, completion_work

if TYPE_CHECKING:
    from piston.runtime.model import LanguageModel


class ServedLanguageModel(Served):
    """A language model behind HTTP."""

    model: "LanguageModel"
    thread: GenerationThread

    def __init__(self, name: str, model: "LanguageModel", metrics: Metrics, settings: Settings) -> None:
        thread = GenerationThread(
            model,
            GenerationMetrics(metrics, name),
            max_open=self.max_open(model.engine.cache.num_slots, settings),
            max_queue_tokens=settings.max_queue_tokens,
            max_stall=settings.max_stall,
        )
        super().__init__(name, model, thread)
        self.grammars = Grammars(model)

    @property
    def max_model_len(self) -> int:
        """See Served."""
        return self.model.engine.cache.capacity

    @property
    def described(self) -> str:
        """See Served."""
        cache = self.model.engine.cache
        megabytes = cache.num_slots * cache.capacity * cache.spec.bytes_per_token / 1e6
        is_exact = cache.num_slots <= self.model.verification.limit
        promise = (
            "decode steps have the same bits alone and beside other rows; a prompt's may depend on how it is cut"
            if is_exact
            else "answers may differ in the last bits with the load"
        )
        return (
            f"{self.name}: {cache.num_slots} rows x {cache.capacity:,} tokens = {megabytes:,.0f} MB of cache, each row "
            f"the whole length; engine {self.model.target}: {promise}"
        )


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


async def generate(
    prepare: Callable[[Any, Any, Any, Caller], Work],
    form: type[Answers],
    served: Any,
    body: Any,
    call: Call,
) -> ASGIApp:
    """Text, whole or as a stream; `prepare` makes the rows of a request, `form` the shape of its answer.

    `served` has a GenerationThread, and the `grammars` that `prepare` is given, of a language model.
    """
    served.thread.check_room()
    work_of = partial(prepare, served.model, served.grammars, body, call.caller)
    work = await (in_compiler(call, work_of) if may_need_grammar(body) else call.in_worker(work_of))
    named = getattr(body, "request_id", UNSET)
    request_id = named if isinstance(named, str) else call.caller.request_id
    ticket = Ticket(work.generations, request_id)
    answers = form(served.name, work, ticket)

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            served.thread.submit(ticket)
            if work.stream:
                await until_left(send_events(answers.events(), send, call.headers, _error_event), receive)
            else:
                await call.respond(answers.answer)(scope, receive, send)
        finally:
            ticket.cancel()

    return respond


async def tokenize(served: ServedLanguageModel, body: TokenizeRequest, call: Call) -> ASGIApp:
    """/tokenize."""
    model = served.model

    def encode() -> list[int]:
        if isinstance(body.prompt, str) == isinstance(body.messages, list):
            raise RequestError("Send either prompt or messages.", param="prompt")
        if isinstance(body.prompt, str):
            return model.tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens)
        return chat_ids(
            model,
            body.messages or [],
            tools=body.tools or None,
            variables=body.chat_template_kwargs or None,
            add_generation_prompt=body.add_generation_prompt,
        )

    return await tokenized(served, body, call, encode)


def _error_event(problem: Exception) -> bytes:
    return event(request_error(problem).to_json())


serve = ServedLanguageModel
ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(ChatRequest, partial(generate, chat_work, ChatAnswers), REFUSED_CHAT),
    "/v1/completions": Endpoint(
        CompletionRequest, partial(generate, completion_work, CompletionAnswers), REFUSED_COMPLETION
    ),
    "/v1/responses": Endpoint(ResponsesRequest, partial(generate, responses_work, ResponsesAnswers), REFUSED_RESPONSES),
    "/v1/decisions": Endpoint(DecisionsRequest, decide, decision_fields.REFUSED),
    "/tokenize": Endpoint(
        TokenizeRequest, tokenize, {"continue_final_message": REFUSED_CHAT["continue_final_message"]}
    ),
    "/detokenize": Endpoint(DetokenizeRequest, detokenize),
}
