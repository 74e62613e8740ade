"""The deployment on Ray Serve: its options over a double of Ray; the real thing where Ray is installed (slow)."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import fake_ray
import pytest
from scripted_piston import script_engines
from starlette.testclient import TestClient
from toy_model import replying

from piston.core.errors import MisuseError
from piston.serving.encoders import MAX_OPEN
from piston.serving.settings import Settings

CHECK = Path(__file__).parents[2] / "scripts/check_ray.py"


@pytest.fixture
def deploying(monkeypatch):
    """serving/ray.py over the double; a module of that is not left to others."""
    fake_ray.install(monkeypatch)
    yield importlib.import_module("piston.serving.ray")
    sys.modules.pop("piston.serving.ray", None)


@pytest.fixture
def replica(deploying, bundle, monkeypatch):
    """A replica of a scripted bundle, closed at the end."""
    script_engines(replying("hello you"), monkeypatch.setattr)
    made = deploying.application(deploying.Deployment(bundle=f"toy={bundle}", max_batch=2)).replica()
    yield made
    made.__del__()


def test_ray_takes_more_than_the_servers_own_queue_so_that_the_server_refuses_first(deploying, bundle):
    deployment = deploying.Deployment(
        bundle=str(bundle),
        replicas=3,
        cpus=2,
        max_batch=4,
        settings=Settings(max_queue_requests=10, shutdown_timeout=7),
    )
    options = deploying.application(deployment).options
    assert (options["num_replicas"], options["ray_actor_options"]) == (3, {"num_cpus": 2})
    assert options["max_ongoing_requests"] > 4 + 10
    assert options["max_queued_requests"] == 4 + 10
    assert options["backpressure_config"].status_code == 429
    assert options["graceful_shutdown_timeout_s"] == 7


def test_the_queue_is_the_servers_default_where_none_is_given(deploying, bundle):
    rows = deploying.Deployment(bundle=str(bundle)).num_rows
    options = deploying.application(deploying.Deployment(bundle=str(bundle))).options
    assert options["max_queued_requests"] == rows + 4 * rows


def test_the_queue_of_another_task_is_that_of_its_server(deploying, sentence_bundle):
    options = deploying.application(deploying.Deployment(bundle=str(sentence_bundle))).options
    assert options["max_queued_requests"] == MAX_OPEN


@pytest.mark.parametrize(
    ("option", "value"), [("max_stall", "0"), ("max_queue_requests", "-1"), ("shutdown_timeout", "nan")]
)
def test_a_number_out_of_range_is_refused_by_name(deploying, bundle, option, value):
    with pytest.raises(MisuseError, match=f"^{option} is {value}"):
        deploying.app({"bundle": str(bundle), option: value})


def test_sessions_are_routed_by_a_hash(deploying, bundle):
    options = deploying.application(deploying.Deployment(bundle=str(bundle))).options
    module, _, name = options["request_router_config"].request_router_class.partition(":")
    assert (module.rpartition(".")[2], name) == ("consistent_hash_router", "ConsistentHashRouter")


def test_a_replica_answers_as_the_server_does_and_checks_its_health(replica):
    body = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    client = TestClient(replica.app)
    answer = client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "hello you")
    replica.check_health()
    replica._server.served["toy"].thread._failures = 3
    with pytest.raises(RuntimeError, match="toy: The last 3 steps"):
        replica.check_health()


def test_a_replica_that_ends_ends_its_engine(deploying, bundle, monkeypatch):
    script_engines(replying("hello"), monkeypatch.setattr)
    made = deploying.application(deploying.Deployment(bundle=f"toy={bundle}", max_batch=2)).replica()
    thread = made._server.served["toy"].thread
    made.__del__()
    assert thread.problem() == "The engine thread has ended."


def test_options_of_a_command_line_are_text(deploying, bundle, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    words = {"bundle": str(bundle), "replicas": "3", "max_stall": "0.1", "lenient": "true", "max_queue_requests": "5"}
    (deployment,) = deploying.app(words | {"api_key_file": str(tmp_path / "keys")}).arguments
    assert (deployment.replicas, deployment.settings.max_stall, deployment.settings.lenient) == (3, 0.1, True)
    assert deployment.settings.api_keys == ("secret",)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({}, "bundle is missing"),
        ({"bundle": "x", "port": "1"}, "no option port; there are api_key_file, bundle"),
        ({"bundle": "x", "replicas": "two"}, "replicas is 'two'"),
        ({"bundle": "x", "lenient": "yes"}, "lenient is 'yes'"),
    ],
)
def test_wrong_options_are_told(deploying, words, told):
    with pytest.raises(MisuseError, match=told):
        deploying.app(words)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (pip install 'piston[ray]')")
def test_two_replicas_on_this_machine_keep_what_is_promised(toys):
    """Of a real two-layer model: equal answers, cached prefixes, 429, a killed replica, a new version under load."""
    bundle = toys.bundle(build={"max_batch": 4, "max_length": 1024}, max_position_embeddings=1024)
    words = [sys.executable, CHECK, bundle, "--json"]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=580)
    assert result.stdout, result.stderr[-2000:]
    found = json.loads(result.stdout)
    assert {name: check["seen"] for name, check in found.items() if not check["holds"]} == {}
    assert len(found) == 6
