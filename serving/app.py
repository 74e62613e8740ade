"""The ASGI application: routes, and what stands behind each of them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from piston.core.console import note
from piston.runtime.model import LanguageModel
from piston.serving.access import Access, ApiKeys, body_of, json_response
from piston.serving.answers import Answers, ChatAnswers, CompletionAnswers
from piston.serving.engine_thread import EngineThread, Ticket
from piston.serving.errors import RequestError, ShuttingDownError, request_error
from piston.serving.event_stream import event, send_events, until_left
from piston.serving.fields import (
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
    read,
)
from piston.serving.metrics import Metrics
from piston.serving.page import page
from piston.serving.prompts import chat_ids
from piston.serving.responses import ResponsesAnswers, responses_work
from piston.serving.settings import Settings
from piston.serving.structured import COMPILE_SECONDS, Grammars, may_need_grammar
from piston.serving.work import Caller, Work, chat_work, completion_work

IGNORED = "x-piston-ignored-fields"
Result = TypeVar("Result")


class Served:
    """One bundle: its model and the thread that owns its engine."""

    def __init__(self, name: str, model: LanguageModel, metrics: Metrics, settings: Settings) -> None:
        self.name = name
        self.model = model
        self.created = int(time.time())
        self.grammars = Grammars(model)
        self.thread = EngineThread(
            model,
            metrics.of(name),
            max_queue_requests=settings.max_queue_requests,
            max_queue_tokens=settings.max_queue_tokens,
            max_stall=settings.max_stall,
        )
        metrics.watch(name, self.thread)

    def to_json(self) -> dict[str, Any]:
        """As /v1/models lists it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "piston",
            "max_model_len": self.model.engine.cache.capacity,
        }


class Server:
    """The application and what it holds. `start` and `close` belong to the event loop."""

    def __init__(self, models: Sequence[tuple[str, LanguageModel]], settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.metrics_prefix)
        self.served = {name: Served(name, model, self.metrics, settings) for name, model in models}
        self.is_draining = False
        # Templates, tokenizers and grammars: off the event loop and off the engine threads. A grammar may take long,
        # and keeps only other grammars waiting.
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._compilers = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        endpoints: dict[str, tuple[str, Callable[[Request], Any]]] = {
            "/v1/models": ("GET", self._models),
            "/v1/models/{name:path}": ("GET", self._model),
            "/v1/chat/completions": ("POST", partial(self._generate, ChatRequest, chat_work, ChatAnswers)),
            "/v1/completions": ("POST", partial(self._generate, CompletionRequest, completion_work, CompletionAnswers)),
            "/v1/responses": ("POST", partial(self._generate, ResponsesRequest, responses_work, ResponsesAnswers)),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/version": ("GET", self._version),
            "/metrics": ("GET", self._metrics_text),
        }
        if settings.page:
            endpoints["/"] = ("GET", self._page)
        self._paths = set(endpoints)
        routes = [Route(path, _endpoint(call), methods=[verb]) for path, (verb, call) in endpoints.items()]
        inner = Starlette(routes=routes, exception_handlers={HTTPException: _refuse, Exception: _raise})
        self.app: ASGIApp = Access(inner, ApiKeys(settings.api_keys), self._count)

    def start(self) -> None:
        """Begin to work."""
        for served in self.served.values():
            served.thread.start()

    async def drain(self) -> None:
        """Take no new requests, and wait for those that run, at most as long as the settings say."""
        self.is_draining = True
        until = time.monotonic() + self.settings.shutdown_timeout
        while any(served.thread.num_open for served in self.served.values()) and time.monotonic() < until:  # noqa: ASYNC110 - counted on other threads
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End what still runs, and the threads."""
        self.is_draining = True
        await asyncio.gather(*(asyncio.to_thread(served.thread.stop) for served in self.served.values()))
        for pool in (self._workers, self._compilers):
            pool.shutdown(wait=False, cancel_futures=True)

    # -- generating -------------------------------------------------------------------------------------------------

    async def _generate(
        self,
        kind: type[Any],
        prepare: Callable[[LanguageModel, Grammars, Any, Caller], Work],
        form: type[Answers],
        request: Request,
    ) -> ASGIApp:
        body, ignored, served = await self._read(request, kind)
        request_id = body.request_id if isinstance(body.request_id, str) else request.state.request_id
        caller = Caller(request_id=request_id, salt=request.state.salt, deadline=_deadline(request))
        call = partial(prepare, served.model, served.grammars, body, caller)
        work = await (self._in_compiler(call) if may_need_grammar(body) else self._in_worker(call))
        ticket = Ticket(work.generations, request_id)
        answers = form(served.name, work, ticket)
        headers = {IGNORED: ", ".join(ignored)} if ignored else {}

        async def respond(_scope: Scope, receive: Receive, send: Send) -> None:
            served.thread.submit(ticket)
            try:
                if work.stream:
                    await until_left(send_events(answers.events(), send, headers, _error_event), receive)
                else:
                    answer = await until_left(answers.answer(), receive)
                    await json_response(answer, headers=headers)(_scope, receive, send)
            finally:
                ticket.cancel()

        return respond

    async def _read(self, request: Request, kind: type[Body]) -> tuple[Any, list[str], Served]:
        """The body of a request, the names of its fields that are ignored, and the bundle it is for."""
        if self.is_draining:
            raise ShuttingDownError
        data = await body_of(request, self.settings.max_body)
        if self.settings.log_prompts:
            note(f"request {request.state.request_id}: {data.decode(errors='replace')}")
        body, ignored = read(data, kind, lenient=self.settings.lenient)
        name = getattr(body, "model", None)
        if not isinstance(name, str):
            return body, ignored, next(iter(self.served.values()))
        return body, ignored, self._find(name)

    def _find(self, name: str) -> Served:
        if name not in self.served:
            known = ", ".join(self.served)
            raise RequestError(
                f"There is no model {name!r} here; there is {known}.", status=404, param="model", code="model_not_found"
            )
        return self.served[name]

    async def _in_worker(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._workers, call)

    async def _in_compiler(self, call: Callable[[], Result]) -> Result:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._compilers, call)
            return await asyncio.wait_for(future, COMPILE_SECONDS)
        except TimeoutError:
            raise RequestError(
                f"The grammar was not compiled within {COMPILE_SECONDS:g} s; send a simpler one, or try again later."
            ) from None

    # -- everything else --------------------------------------------------------------------------------------------

    async def _models(self, _request: Request) -> Response:
        return json_response({"object": "list", "data": [served.to_json() for served in self.served.values()]})

    async def _model(self, request: Request) -> Response:
        return json_response(self._find(request.path_params["name"]).to_json())

    async def _tokenize(self, request: Request) -> Response:
        body, ignored, served = await self._read(request, TokenizeRequest)
        model = served.model

        def tokenize() -> list[int]:
            if isinstance(body.prompt, str) == isinstance(body.messages, list):
                raise RequestError("Send either prompt or messages.", param="prompt")
            if isinstance(body.prompt, str):
                return model.tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens)
            variables = body.chat_template_kwargs if isinstance(body.chat_template_kwargs, dict) else {}
            tools = body.tools if isinstance(body.tools, list) else None
            return chat_ids(
                model,
                body.messages,
                tools=tools,
                variables=variables,
                add_generation_prompt=body.add_generation_prompt,
            )

        ids = await self._in_worker(tokenize)
        answer = {"count": len(ids), "max_model_len": model.engine.cache.capacity, "tokens": ids}
        if body.return_token_strs:
            answer["token_strs"] = [model.tokenizer.token_of(token_id) for token_id in ids]
        return json_response(answer, headers={IGNORED: ", ".join(ignored)} if ignored else None)

    async def _detokenize(self, request: Request) -> Response:
        body, ignored, served = await self._read(request, DetokenizeRequest)
        text = await self._in_worker(lambda: served.model.tokenizer.decode(body.tokens, skip_special_tokens=False))
        return json_response({"prompt": text}, headers={IGNORED: ", ".join(ignored)} if ignored else None)

    async def _health(self, _request: Request) -> Response:
        found = {name: served.thread.problem() for name, served in self.served.items()}
        problems = {name: problem for name, problem in found.items() if problem is not None}
        return json_response(
            {"status": "unhealthy", "problems": problems} if problems else {"status": "ok"}, 503 if problems else 200
        )

    async def _ready(self, request: Request) -> Response:
        if self.is_draining:
            return json_response({"status": "shutting down"}, 503)
        return await self._health(request)

    async def _version(self, _request: Request) -> Response:
        return json_response({"version": version("piston")})

    async def _metrics_text(self, _request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    async def _page(self, _request: Request) -> Response:
        return page()

    def _count(self, path: str, status: int) -> None:
        self.metrics.http.labels(path if path in self._paths else "other", str(status)).inc()


def _endpoint(call: Callable[[Request], Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Any:
        return await call(request)

    return endpoint


def _deadline(request: Request) -> float | None:
    """A time.monotonic(), from the header X-Request-Timeout in seconds."""
    stated = request.headers.get("x-request-timeout")
    if stated is None:
        return None
    try:
        seconds = float(stated)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:  # noqa: PLR2004 - beyond any request; NaN is outside too
        raise RequestError(f"X-Request-Timeout is {stated!r}; it must be a number of seconds above 0.")
    return time.monotonic() + seconds


def _error_event(problem: Exception) -> bytes:
    return event(request_error(problem).to_json())


async def _refuse(_request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    error = RequestError(f"{problem.detail}.", status=problem.status_code)
    return json_response(error.to_json(), error.status, dict(problem.headers or {}))


async def _raise(_request: Request, problem: Exception) -> Response:
    raise problem
