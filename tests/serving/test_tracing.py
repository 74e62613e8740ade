"""What a collector of OpenTelemetry gets: read with the project's own protocol buffers, from a server of ours."""

import contextlib
import gzip
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from embedded import embedder
from live_server import serving
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from toy_model import ids_of, replying, toy_model

from piston.core.errors import MissingExtraError, MisuseError
from piston.serving.app import Server
from piston.serving.settings import Settings

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "a secret word"}], "temperature": 0}
PARENT_TRACE, PARENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@contextlib.contextmanager
def collector():
    """An address that takes traces, and the spans that came."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    finally:
        server.shutdown()
        server.server_close()


def spans_of(bodies):
    found = []
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            found += [(resource.resource, span) for scope in resource.scope_spans for span in scope.spans]
    return found


def attributes_of(span):
    values = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        values[item.key] = [each.string_value for each in value.values] if kind == "array_value" else value
    return values


def traced(models, requests):
    """The spans of a server, by name, after these requests."""
    with collector() as (address, bodies):
        with serving(models, Settings(otlp_traces_endpoint=address)) as server:
            for verb, path, body, headers in requests:
                server.request(verb, path, None if body is None else json.dumps(body).encode(), headers)
        spans = spans_of(bodies)
        assert {item.value.string_value for resource, _ in spans for item in resource.attributes} >= {"piston"}
        assert not any(b"secret" in body for body in bodies)
        return {span.name: span for _, span in spans}


def test_a_request_has_a_span_under_its_clients_and_its_row_one_under_it():
    headers = {"content-type": "application/json", "traceparent": f"00-{PARENT_TRACE}-{PARENT_SPAN}-01"}
    spans = traced(
        [("toy", toy_model(replying("hello no"), num_slots=2))], [("POST", "/v1/chat/completions", CHAT, headers)]
    )
    request, row = spans["POST /v1/chat/completions"], spans["llm_request"]
    assert request.trace_id.hex() == row.trace_id.hex() == PARENT_TRACE
    assert (request.parent_span_id.hex(), row.parent_span_id) == (PARENT_SPAN, request.span_id)
    assert request.start_time_unix_nano <= row.start_time_unix_nano < row.end_time_unix_nano
    assert attributes_of(request)["http.response.status_code"] == 200
    told = attributes_of(row)
    assert told["gen_ai.request.model"] == "toy"
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert told["gen_ai.usage.input_tokens"] == len(ids_of("<user>a secret word<end><bot>"))
    assert told["gen_ai.usage.output_tokens"] == len(ids_of("hello no")) + 1
    assert 0 <= told["gen_ai.latency.time_in_queue"] <= told["gen_ai.latency.time_to_first_token"]


def test_an_encoder_is_traced_too_and_an_unknown_path_names_no_span():
    body = {"model": "mini", "input": "hello"}
    headers = {"content-type": "application/json"}
    spans = traced([("mini", embedder())], [("POST", "/v1/embeddings", body, headers), ("GET", "/nothing/1", None, {})])
    assert set(spans) == {"POST /v1/embeddings", "llm_request", "GET"}
    assert attributes_of(spans["GET"])["http.response.status_code"] == 404
    assert attributes_of(spans["llm_request"])["gen_ai.usage.input_tokens"] > 0


def test_an_address_that_is_none_is_refused_before_anything_is_loaded():
    with pytest.raises(MisuseError, match=r"otlp_traces_endpoint is 'localhost:4318'; write an address"):
        Settings(otlp_traces_endpoint="localhost:4318")


def test_without_opentelemetry_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'piston\[otel\]'"):
        Server([], Settings(otlp_traces_endpoint="http://localhost:4318/v1/traces"))
