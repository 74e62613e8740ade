import json
import re
import time
from pathlib import Path

from embedded import embedder
from toy_model import ids_of, replying, toy_model

from piston.serving.metrics import Metrics
from piston.serving.settings import Settings
from piston.serving.tasks import feature_extraction, text_generation

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def value(text, name):
    (found,) = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return float(found)


def test_what_was_done_is_counted_under_vllms_names(live):
    server = live(replying("hello no"), settings={"metrics_prefix": "vllm"})
    for _ in range(2):
        server.post("/v1/chat/completions", CHAT)
    text = server.request("GET", "/metrics")[2].decode()
    prompt, output = len(ids_of("<user>hi<end><bot>")), len(ids_of("hello no")) + 1
    assert value(text, "vllm:prompt_tokens_total") == 2 * prompt
    assert value(text, "vllm:generation_tokens_total") == 2 * output
    assert value(text, "vllm:prefix_cache_queries_total") == 2 * prompt
    assert value(text, "vllm:prefix_cache_hits_total") == prompt - 1
    assert value(text, "vllm:time_to_first_token_seconds_count") == 2
    assert value(text, "vllm:inter_token_latency_seconds_count") == 2 * (output - 1)
    assert value(text, "vllm:e2e_request_latency_seconds_count") == 2
    deadline = time.monotonic() + 10  # the engine's thread may free the row a moment after the answer
    while value(server.request("GET", "/metrics")[2].decode(), "vllm:num_requests_running"):
        assert time.monotonic() < deadline
    assert 'vllm:request_success_total{finished_reason="stop",model_name="toy"} 2.0' in text


def test_unknown_paths_are_counted_together(live):
    server = live(replying("x"))
    for n in range(3):
        server.request("GET", f"/nothing/{n}")
    assert 'piston:http_requests_total{path="other",status="404"} 3.0' in server.request("GET", "/metrics")[2].decode()


DASHBOARD = Path(__file__).parents[2] / "docs/grafana.json"
LABELS = {"model_name", "le", "finished_reason", "path", "status"}


def exported():
    """Every name that a server of both kinds of models exports, without the suffixes of histograms."""
    metrics = Metrics("piston")
    for task, model in ((text_generation, toy_model(replying("x"))), (feature_extraction, embedder())):
        metrics.watch("toy", task.serve("toy", model, metrics, Settings()).thread)
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics.text().decode(), re.MULTILINE))


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are():
    kinds, board = exported(), json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [item["query"] for item in board["templating"]["list"]]
    asked = set(re.findall(r"piston:\w+", " ".join(queries)))
    for name in asked:
        kind = kinds.get(name) or kinds.get(name.removesuffix("_bucket"))
        assert kind is not None, name
        assert (kind == "histogram") == name.endswith("_bucket"), name
    used = re.findall(r"by \(([\w, ]+)\)|[{,](\w+)=", " ".join(queries))
    assert {label for pair in used for names in pair for label in names.split(", ") if label} <= LABELS


def test_the_dashboard_shows_every_metric_but_those_of_the_client_library():
    text = DASHBOARD.read_text()
    assert [
        name for name in exported() if name.startswith("piston:") and name not in text and not name.endswith("_created")
    ] == []
