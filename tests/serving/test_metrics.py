import re

from toy_model import ids_of, replying

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
    assert value(text, "vllm:num_requests_running") == 0
    assert 'vllm:request_success_total{finished_reason="stop",model_name="toy"} 2.0' in text


def test_unknown_paths_are_counted_together(live):
    server = live(replying("x"))
    for n in range(3):
        server.request("GET", f"/nothing/{n}")
    assert 'piston:http_requests_total{path="other",status="404"} 3.0' in server.request("GET", "/metrics")[2].decode()
