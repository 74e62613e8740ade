"""Prometheus metrics under vLLM's names, with buckets fine enough for small models."""

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from piston.runtime.generate.generation import Generation
from piston.serving.batch_thread import BatchTicket
from piston.serving.engine_thread import EngineThread
from piston.serving.generation_thread import Ticket
from piston.serving.tracing import RowSpan, Tracer

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """All metrics of a server; `text` is what Prometheus reads. `tracer` gets the rows, too."""

    def __init__(self, prefix: str, tracer: Tracer | None = None) -> None:
        self.tracer = tracer
        self.registry = CollectorRegistry()
        self.prefix = prefix
        model = ("model_name",)

        def counter(name: str, text: str, labels: tuple[str, ...] = model) -> Counter:
            return Counter(f"{prefix}:{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"{prefix}:{name}", text, model, buckets=buckets, registry=self.registry)

        self.http = counter("http_requests", "Requests by path and status.", ("path", "status"))
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.prefix_queries = counter("prefix_cache_queries", "Prompt tokens that were looked up in kept prefixes.")
        self.prefix_hits = counter("prefix_cache_hits", "Prompt tokens whose states were kept from before.")
        self.drafted = counter("spec_decode_num_draft_tokens", "Tokens drafted: looked up, or forced by a grammar.")
        self.accepted = counter("spec_decode_num_accepted_tokens", "Drafted tokens that were right.")
        self.success = counter("request_success", "Rows that ended, by reason.", ("model_name", "finished_reason"))
        self.refused = counter("requests_refused", "Requests refused because too much waits.")
        self.first_token = histogram("time_to_first_token_seconds", "From the request to its first token.")
        self.inter_token = histogram("inter_token_latency_seconds", "Between two tokens of a row.")
        self.end_to_end = histogram("e2e_request_latency_seconds", "From the request to its last token.")
        self.queue = histogram("request_queue_time_seconds", "Waiting for a slot.")
        self.prefill = histogram("request_prefill_time_seconds", "The engine's part of the prompt.")
        self.decode = histogram("request_decode_time_seconds", "From the first token to the last.")
        self.prompt_length = histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.output_length = histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)
        self.batch_rows = histogram("batch_rows", "Rows of a batch of an encoder.", TOKENS)
        self.batch_tokens = histogram("batch_tokens", "Tokens of a batch of an encoder.", TOKENS)

    def watch(self, name: str, thread: EngineThread[Any]) -> None:
        """Report what an engine thread holds whenever somebody asks."""
        self.registry.register(_Load(self.prefix, name, thread))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class GenerationMetrics:
    """The observer of a language model's engine thread."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name
        self._first_token = metrics.first_token.labels(name)
        self._inter_token = metrics.inter_token.labels(name)
        self._generation_tokens = metrics.generation_tokens.labels(name)

    def token(self, generation: Generation, seconds: float | None) -> None:
        """See Observer."""
        self._generation_tokens.inc()
        if seconds is None:
            self._first_token.observe(generation.first_at - generation.started)
        else:
            self._inter_token.observe(seconds)

    def found(self, generation: Generation, num_tokens: int) -> None:
        """See Observer."""
        self._generation_tokens.inc(num_tokens)
        self._first_token.observe(generation.first_at - generation.started)

    def ended(self, ticket: Ticket, generation: Generation, reason: str) -> None:
        """See Observer."""
        metrics, name, request = self._metrics, self._name, generation.request
        metrics.success.labels(name, reason).inc()
        if metrics.tracer is not None:
            row = RowSpan(
                name=name,
                began=generation.started,
                first_at=generation.first_at or None,
                in_queue=request.times.queue,
                num_prompt_tokens=request.num_given,
                num_cached=request.num_cached,
                num_tokens=len(request.output_ids),
                reason=reason,
            )
            metrics.tracer.row(ticket.trace, row)
        if not request.output_ids:
            return
        metrics.prompt_tokens.labels(name).inc(request.num_given)
        metrics.prefix_queries.labels(name).inc(len(request.prompt_ids))
        metrics.prefix_hits.labels(name).inc(request.num_cached)
        if (speculator := request.speculator) is not None:
            metrics.drafted.labels(name).inc(speculator.num_drafted)
            metrics.accepted.labels(name).inc(speculator.num_accepted)
        metrics.queue.labels(name).observe(request.times.queue)
        metrics.prefill.labels(name).observe(request.times.prefill)
        metrics.decode.labels(name).observe(generation.last_at - generation.first_at)
        metrics.end_to_end.labels(name).observe(generation.last_at - generation.started)
        metrics.prompt_length.labels(name).observe(request.num_given)
        metrics.output_length.labels(name).observe(len(request.output_ids))

    def refused(self) -> None:
        """See Observer."""
        self._metrics.refused.labels(self._name).inc()


class BatchMetrics:
    """The observer of an encoder's engine thread."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def batch(self, num_rows: int, num_tokens: int) -> None:
        """See BatchObserver."""
        self._metrics.batch_rows.labels(self._name).observe(num_rows)
        self._metrics.batch_tokens.labels(self._name).observe(num_tokens)

    def finished(self, ticket: BatchTicket[Any], reason: str) -> None:
        """See BatchObserver."""
        metrics, name, now = self._metrics, self._name, time.perf_counter()
        metrics.success.labels(name, reason).inc()
        if metrics.tracer is not None:
            row = RowSpan(
                name=name,
                began=ticket.added_at,
                first_at=None,
                in_queue=(ticket.began_at or now) - ticket.added_at,
                num_prompt_tokens=ticket.num_tokens,
                num_cached=0,
                num_tokens=0,
                reason=reason,
            )
            metrics.tracer.row(ticket.trace, row)
        if reason != "stop":
            return
        metrics.prompt_tokens.labels(name).inc(ticket.num_tokens)
        metrics.queue.labels(name).observe(ticket.began_at - ticket.added_at)
        metrics.end_to_end.labels(name).observe(now - ticket.added_at)
        metrics.prompt_length.labels(name).observe(ticket.num_tokens)

    def refused(self) -> None:
        """See QueueObserver."""
        self._metrics.refused.labels(self._name).inc()


class _Load(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, prefix: str, name: str, thread: EngineThread[Any]) -> None:
        self._prefix, self._name, self._thread = prefix, name, thread

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See Collector."""
        values = {
            "num_requests_running": ("Rows that the engine works on.", self._thread.num_running),
            "num_requests_waiting": ("Rows that wait for the engine.", self._thread.num_waiting),
            "kv_cache_usage_perc": ("Share of the cache that is filled, 1 for all of it.", self._thread.cache_usage),
        }
        for name, (text, value) in values.items():
            if value is not None:
                family = GaugeMetricFamily(f"{self._prefix}:{name}", text, labels=("model_name",))
                family.add_metric([self._name], value)
                yield family
