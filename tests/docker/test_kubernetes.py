"""The manifests of docs/examples: what they ask of the server exists, and what they promise its users holds."""

import argparse
from pathlib import Path

import pytest
import yaml

from piston.serving import cli
from piston.serving.access import OPEN_PATHS

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
KUBERNETES = list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))
KSERVE = list(yaml.safe_load_all((EXAMPLES / "kserve.yaml").read_text()))
DEPLOYMENT, SERVICE, BUDGET = KUBERNETES
RUNTIME, MODEL = KSERVE
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINERS = [POD["containers"][0], RUNTIME["spec"]["containers"][0]]


def options_of(container):
    """The container's arguments as the parser of `piston serve` reads them."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    verb, *words = container["args"]
    assert verb == "serve"
    return parser.parse_args(words)


def seconds_before_stop(container):
    """The sleep of preStop."""
    code = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    return float(code.partition("sleep(")[2].rstrip(")"))


def test_the_kinds_and_versions_are_those_of_the_apis():
    assert [(item["apiVersion"], item["kind"]) for item in KUBERNETES + KSERVE] == [
        ("apps/v1", "Deployment"),
        ("v1", "Service"),
        ("policy/v1", "PodDisruptionBudget"),
        ("serving.kserve.io/v1alpha1", "ServingRuntime"),
        ("serving.kserve.io/v1beta1", "InferenceService"),
    ]


def test_every_selector_finds_the_pods():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert SERVICE["spec"]["selector"] == labels
    assert BUDGET["spec"]["selector"]["matchLabels"] == labels


@pytest.mark.parametrize(("container", "port"), [(CONTAINERS[0], 8000), (CONTAINERS[1], 8080)])
def test_the_server_listens_where_it_is_probed(container, port):
    options = options_of(container)
    assert (options.host, options.port) == ("0.0.0.0", port)  # noqa: S104 - inside a container
    named = {item.get("name", item["containerPort"]): item["containerPort"] for item in container["ports"]}
    for name, path in (("startupProbe", "/health"), ("readinessProbe", "/ready"), ("livenessProbe", "/health")):
        probe = container[name]["httpGet"]
        assert (probe["path"], named[probe["port"]]) == (path, port)
        assert probe["path"] in OPEN_PATHS  # a probe has no API key


@pytest.mark.parametrize("container", CONTAINERS)
def test_nothing_is_allowed_that_the_runtime_does_not_need(container):
    context = container["securityContext"]
    assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert (context | POD["securityContext"])["runAsUser"] == 10001
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(
    ("container", "grace"),
    [
        (CONTAINERS[0], POD["terminationGracePeriodSeconds"]),
        (CONTAINERS[1], MODEL["spec"]["predictor"]["terminationGracePeriodSeconds"]),
    ],
)
def test_running_requests_are_finished_before_a_pod_is_killed(container, grace):
    assert seconds_before_stop(container) + options_of(container).shutdown_timeout < grace


def test_a_rolling_update_never_has_fewer_replicas_than_wanted():
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert BUDGET["spec"]["minAvailable"] < DEPLOYMENT["spec"]["replicas"]


def test_the_bundle_is_where_the_server_reads_it_and_cannot_be_written():
    mount = POD["containers"][0]["volumeMounts"][0]
    assert (mount["mountPath"], mount["readOnly"]) == ("/bundle", True)
    assert [str(path) for path in options_of(CONTAINERS[0]).bundles] == ["smollm2=/bundle"]
    assert [str(path) for path in options_of(CONTAINERS[1]).bundles] == ["{{.Name}}=/mnt/models"]


def test_kserve_chooses_this_runtime_for_the_format_that_the_model_names():
    model = MODEL["spec"]["predictor"]["model"]
    formats = [item["name"] for item in RUNTIME["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"] in formats, model["runtime"]) == (True, RUNTIME["metadata"]["name"])
    assert RUNTIME["spec"]["containers"][0]["name"] == "kserve-container"  # the name that KServe looks for
