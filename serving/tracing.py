"""OpenTelemetry traces: a span for each HTTP request, and under it one for each row of the engine. Never a prompt.

Attributes are those of the semantic conventions for HTTP and for generative AI, and vLLM's for latencies.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from piston.core.errors import MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

NOT_FOUND = 404
ERRORS_FROM = 500  # statuses that are the server's fault


@dataclass(frozen=True, slots=True)
class RowSpan:
    """What a span tells of a row; times are of time.perf_counter(), None where they never came."""

    name: str
    began: float
    first_at: float | None
    in_queue: float
    num_prompt_tokens: int
    num_cached: int
    num_tokens: int
    reason: str

    @property
    def attributes(self) -> dict[str, str | int | float | list[str]]:
        """As the span has them."""
        found: dict[str, str | int | float | list[str]] = {
            "gen_ai.request.model": self.name,
            "gen_ai.response.finish_reasons": [self.reason],
            "gen_ai.usage.input_tokens": self.num_prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": self.num_cached,
            "gen_ai.usage.output_tokens": self.num_tokens,
            "gen_ai.latency.time_in_queue": self.in_queue,
        }
        if self.first_at is not None:
            found["gen_ai.latency.time_to_first_token"] = self.first_at - self.began
        return found


class Tracer:
    """Sends spans to a collector, in batches and on a thread of their own.

    Args:
        endpoint: where OTLP is taken over HTTP, such as http://localhost:4318/v1/traces. What else there is to set,
            such as headers and the share of requests that is sampled, OpenTelemetry reads from its own variables
            (OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME).

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise MissingExtraError(
                "--otlp-traces-endpoint needs OpenTelemetry; install it: pip install 'piston[otel]'."
            ) from None
        named = Resource.create({"service.name": "piston"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=named)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("piston.serving")

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str], request_id: str) -> "Iterator[Span]":
        """The span of an HTTP request, under that of its client where `traceparent` names one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        attributes = {"http.request.method": method, "url.path": path, "piston.request_id": request_id}
        above = TraceContextTextMapPropagator().extract(dict(headers))
        with self._tracer.start_as_current_span(
            f"{method} {path}", context=above, kind=SpanKind.SERVER, attributes=attributes
        ) as span:
            yield span

    def row(self, context: "Context | None", row: RowSpan) -> None:
        """The span of a row that has ended now, under that of its request."""
        now, clock = time.perf_counter(), time.time_ns()
        span = self._tracer.start_span(
            "llm_request",
            context=context,
            start_time=clock - int(1e9 * (now - row.began)),
            attributes=row.attributes,
        )
        span.end(clock)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def end_request(span: "Span", method: str, status: int) -> None:
    """Note the status of a request's answer; 0: there was none."""
    from opentelemetry.trace import Status, StatusCode

    if status == NOT_FOUND:
        span.update_name(method)  # names are to be few
    span.set_attribute("http.response.status_code", status)
    if status >= ERRORS_FROM or status == 0:
        span.set_status(Status(StatusCode.ERROR))


def current_context() -> Any:
    """The context of the running request's span, for another thread; None where nothing is traced."""
    import sys

    module = sys.modules.get("opentelemetry.context")
    return None if module is None else module.get_current()
