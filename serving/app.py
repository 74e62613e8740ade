"""The ASGI application: paths, and which bundle and task answers a request."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from piston.core.console import note
from piston.core.tasks import task_module, task_names
from piston.serving import tasks
from piston.serving.access import Access, ApiKeys, body_of, json_response
from piston.serving.endpoint import Call, Caller, Endpoint
from piston.serving.errors import RequestError, ShuttingDownError
from piston.serving.fields import decoded, read
from piston.serving.forms import form_of, is_multipart
from piston.serving.metrics import Metrics
from piston.serving.page import page
from piston.serving.served import Model, Served
from piston.serving.settings import Settings
from piston.serving.tracing import Tracer


class Server:
    """The application and what it holds. `start` and `close` belong to the event loop."""

    def __init__(self, models: Sequence[tuple[str, Model]], settings: Settings) -> None:
        self.settings = settings
        self._tracer = None if settings.otlp_traces_endpoint is None else Tracer(settings.otlp_traces_endpoint)
        self.metrics = Metrics(settings.metrics_prefix, self._tracer)
        self.served: dict[str, Served] = {}
        self._endpoints: dict[str, dict[str, Endpoint]] = {}  # by path, then by task
        self._reads: dict[str, tuple[Callable[[list[Any]], Any], list[Served]]] = {}  # by path, and of which bundles
        for name, model in models:
            module = task_module(tasks, model.manifest.task)
            self.served[name] = module.serve(name, model, self.metrics, settings)
            self.metrics.watch(name, self.served[name].thread)
            for path, endpoint in module.ENDPOINTS.items():
                self._endpoints.setdefault(path, {})[model.manifest.task] = endpoint
            for path, read_of in getattr(module, "READS", {}).items():
                self._reads.setdefault(path, (read_of, []))[1].append(self.served[name])
        self.is_draining = False
        # Templates, tokenizers and grammars: off the event loop and off the engine threads. A grammar may take long,
        # and keeps only other grammars waiting.
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._compilers = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        calls: dict[str, tuple[str, Callable[[Request], Awaitable[Any]]]] = {
            "/v1/models": ("GET", self._models),
            "/v1/models/{name:path}": ("GET", self._model),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/version": ("GET", self._version),
            "/metrics": ("GET", self._metrics_text),
            **{path: ("POST", partial(self._answer, path)) for path in self._endpoints},
            **{path: ("GET", partial(self._read, path)) for path in self._reads},
        }
        if settings.page:
            calls["/"] = ("GET", self._page)
        self._paths = set(calls)
        routes = [Route(path, _endpoint(call), methods=[verb]) for path, (verb, call) in calls.items()]
        inner = Starlette(routes=routes, exception_handlers={HTTPException: self._refuse, Exception: _raise})
        self.app: ASGIApp = Access(inner, ApiKeys(settings.api_keys), self._count, self._tracer)

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
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def _answer(self, path: str, request: Request) -> ASGIApp:
        """What the bundle that a request names answers under a path."""
        if self.is_draining:
            raise ShuttingDownError
        has_file = is_multipart(request.headers)
        data = await body_of(request, self.settings.max_form if has_file else self.settings.max_body)
        if self.settings.log_prompts:
            shown = f"a form of {len(data):,} bytes" if has_file else data.decode(errors="replace")
            note(f"request {request.state.request_id}: {shown}")
        form = await form_of(request.headers, data)
        given = decoded(data) if form is None else form
        served, endpoint = self._find_endpoint(path, given)
        is_form = form is not None
        body, ignored = read(given, endpoint.kind, endpoint.refused, lenient=self.settings.lenient, is_form=is_form)
        call = Call(Caller.of(request), ignored, self._workers, self._compilers)
        return await endpoint.answer(served, body, call)

    def _find_endpoint(self, path: str, given: Mapping[str, Any]) -> tuple[Served, Endpoint]:
        """The bundle that a request names, or the first that suits it where it names none, and how it answers."""
        offering, name = self._endpoints[path], given.get("model")
        if not isinstance(name, str):
            able = [served for served in self.served.values() if served.task in offering]
            served = next((one for one in able if offering[one.task].suits(one, given)), able[0])
        else:
            served = self._find(name)
        if served.task not in offering:
            others = ", ".join(other for other, one in self.served.items() if one.task in offering)
            raise RequestError(
                f"{served.name} is a model for {served.task}, which has no {path}; {others} has it. Send "
                f"{served.name} requests to {' or '.join(self._paths_of(served))}.",
                param="model",
                code="wrong_task",
            )
        return served, offering[served.task]

    def _find(self, name: str) -> Served:
        if name not in self.served:
            known = ", ".join(self.served)
            raise RequestError(
                f"There is no model {name!r} here; there is {known}.", status=404, param="model", code="model_not_found"
            )
        return self.served[name]

    async def _refuse(self, request: Request, problem: Exception) -> Response:
        """A path that is not there, or not by this verb."""
        assert isinstance(problem, HTTPException)
        message, code = f"{problem.detail}.", None
        if problem.status_code == 404 and (able := _tasks_with(request.url.path)):  # noqa: PLR2004 - not found
            held = ", ".join(f"{name} ({served.task})" for name, served in self.served.items())
            paths = " or ".join(dict.fromkeys(path for one in self.served.values() for path in self._paths_of(one)))
            message = (
                f"{request.url.path} needs a bundle for {' or '.join(able)}; this server has {held}. Send requests to "
                f"{paths}."
            )
            code = "wrong_task"
        error = RequestError(message, status=problem.status_code, code=code)
        return json_response(error.to_json(), error.status, dict(problem.headers or {}))

    async def _read(self, path: str, _request: Request) -> Response:
        """What the bundles of a task are, as the task's READS describe them."""
        read_of, served = self._reads[path]
        return json_response(read_of(served))

    async def _models(self, _request: Request) -> Response:
        return json_response({"object": "list", "data": [self._listed(served) for served in self.served.values()]})

    async def _model(self, request: Request) -> Response:
        return json_response(self._listed(self._find(request.path_params["name"])))

    def _listed(self, served: Served) -> dict[str, Any]:
        return served.to_json() | {"endpoints": self._paths_of(served)}

    def _paths_of(self, served: Served) -> list[str]:
        return [path for path, offering in self._endpoints.items() if served.task in offering]

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


def _endpoint(call: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Any:
        return await call(request)

    return endpoint


async def _raise(_request: Request, problem: Exception) -> Response:
    raise problem


def _tasks_with(path: str) -> list[str]:
    """The tasks that answer a path, in alphabetical order."""
    return [name for name in task_names(tasks) if path in task_module(tasks, name).ENDPOINTS]
