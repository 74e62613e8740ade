"""The steps of docs/ci/, line for line in a copy of the tree: with a toy in the demo model's place, and with itself."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from checkpoints import write_checkpoint
from making import write_toy_recipe
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TEMPLATES = {
    "github": yaml.safe_load((ROOT / "docs/ci/github.yml").read_text(encoding="utf-8")),
    "gitlab": yaml.safe_load((ROOT / "docs/ci/gitlab.yml").read_text(encoding="utf-8")),
}
JUDGED = """
[eval]
data = "../../tests/data/held_out.txt"
reference = "float"
max_tokens = 1000
window = 64
stride = 32
answer_tokens = 0

[gates]
require = ["verify", "int8 >= 90%", "bundle.size <= 5MB", "eval.ppl <= 10%"]

[output]
bundle = "../../bundles/smollm2-int8"
lock = "demo.lock"
"""
# What a template installs is installed here already: checked by name, not downloaded again.
PIP = """#!{python}
import importlib.metadata, sys
words = sys.argv[1:]
assert words[0] == "install", words
wanted = [word for word in words[1:] if not word.startswith("-") and word != "constraints.txt"]
for word in wanted:
    name = "piston" if word.startswith(".[") else word.partition("==")[0]
    importlib.metadata.version(name)
"""


def steps(name):
    """The shell scripts of a template in order, with the environment of each."""
    if name == "gitlab":
        (job,) = TEMPLATES[name].values()
        return [("\n".join(job["script"]), job["variables"])]
    (job,) = TEMPLATES[name]["jobs"].values()
    return [(step["run"], job["env"] | step.get("env", {})) for step in job["steps"] if "run" in step]


def shims(directory):
    """`pip`, `piston` and `python` as a fresh environment has them."""
    directory.mkdir()
    bodies = {
        "pip": PIP.format(python=sys.executable),
        "piston": f'#!/bin/sh\nexec "{sys.executable}" -m piston.cli.main "$@"\n',
        "python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n',
    }
    for name, body in bodies.items():
        (directory / name).write_text(body)
        (directory / name).chmod(0o755)
    return directory


def run_steps(name, tree, **environment):
    for script, variables in steps(name):
        own = {key: value for key, value in variables.items() if "${{" not in value}
        path = f"{tree / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | own | environment | {"PATH": path, "GITHUB_STEP_SUMMARY": str(tree / "summary")}
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "set +u\n" + script],
            cwd=tree,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{script}\n{result.stdout}\n{result.stderr}"


def copy_of_tree(directory):
    """What a template reads of the repository."""
    for name in ("constraints.txt", "pyproject.toml", "docs/examples", "scripts", "tests/data"):
        source, goal = ROOT / name, directory / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, goal) if source.is_dir() else shutil.copyfile(source, goal)
    shims(directory / "bin")
    return directory


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The tree with a toy recipe and a toy checkpoint."""
    directory = copy_of_tree(tmp_path_factory.mktemp("ci") / "tree")
    checkpoint = directory / "docs/examples/checkpoint"
    write_checkpoint(checkpoint)
    write_toy_recipe(directory / "docs/examples/demo.toml", JUDGED)
    (directory / "scripts/demo_checkpoint.py").write_text(f"print({str(checkpoint)!r})\n")
    return directory


def check_products(tree):
    report = json.loads((tree / "report/report.json").read_text())
    assert report["is_published"]
    assert ET.parse(tree / "report/junit.xml").getroot().get("failures") == "0"  # noqa: S314 - ours
    assert "<title>" in (tree / "report/index.html").read_text()
    assert json.loads((tree / "bundles/smollm2-int8.cdx.json").read_text())["bomFormat"] == "CycloneDX"
    return {stage["name"]: stage["is_cached"] for stage in report["stages"]}


@pytest.fixture(scope="module")
def made(tree):
    """After the steps of the GitHub template; which stages were cached."""
    run_steps("github", tree, SIGNING_KEY="")
    return check_products(tree)


def test_the_steps_for_github_make_a_bundle_and_its_reports(tree, made):
    assert not any(made.values())
    assert (tree / "summary").read_text().startswith("## ✅")


def test_the_steps_for_gitlab_do_the_same_and_find_all_of_it_cached(tree, made):
    run_steps("gitlab", tree)
    assert all(check_products(tree).values())


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed")
def test_a_key_among_the_secrets_signs_the_bundle(tree, made):
    keys = tree / "k"
    subprocess.run(["minisign", "-GW", "-p", f"{keys}.pub", "-s", f"{keys}.key"], check=True, capture_output=True)
    run_steps("github", tree, SIGNING_KEY=keys.with_suffix(".key").read_text())
    words = ["bin/piston", "verify", "bundles/smollm2-int8", "--public-key", f"{keys}.pub", "--quiet"]
    subprocess.run(words, cwd=tree, check=True, capture_output=True)


def test_a_bundle_may_be_the_baseline_of_a_gate_on_speed(tree, made, tmp_path):
    options = 'repeats = 6\nstarts = 0\nprompt_len = "8"\ngen_len = "8"'
    bench = f'\n[bench]\nbaseline = "../../bundles/smollm2-int8"\n{options}\n'
    gate, output = 'require = ["bench.tpot.p50 <= 900% over baseline"', 'bundle = "../../bundles/beside"'
    judged = JUDGED.replace('require = ["verify"', f'{gate}, "verify"').replace(
        'bundle = "../../bundles/smollm2-int8"', output
    )
    recipe = write_toy_recipe(tree / "docs/examples/beside.toml", judged + bench)
    words = ["bin/piston", "make", str(recipe), "--json", "--quiet"]
    env = os.environ | {"PISTON_CACHE_DIR": str(tree / ".cache/piston")}
    result = subprocess.run(words, cwd=tree, env=env, capture_output=True, text=True, check=False)
    report = json.loads(result.stdout)
    assert [stage["name"] for stage in report["stages"] if not stage["is_cached"]] == ["bench"]
    assert report["is_published"]
    assert report["gates"][0]["place"].startswith("batch 1, prompt 8")


@pytest.mark.slow
def test_a_locked_run_elsewhere_is_bit_equal(tree, made, tmp_path):
    words = ["bin/piston", "make", "docs/examples/demo.toml", "--locked", "--json", "--quiet"]
    env = os.environ | {"PISTON_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "7"}
    result = subprocess.run(words, cwd=tree, env=env, check=True, capture_output=True, text=True)
    assert json.loads(result.stdout)["lock"]["equality"] == "bit-equal"


@pytest.mark.slow
@pytest.mark.model
def test_the_demo_model_goes_through_both_templates_the_second_time_from_the_cache(demo_checkpoint, tmp_path):
    tree = copy_of_tree(tmp_path / "tree")
    run_steps("github", tree, SIGNING_KEY="")
    assert not any(check_products(tree).values())
    run_steps("gitlab", tree)
    assert all(check_products(tree).values())


def test_what_the_templates_install_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for template in TEMPLATES:
        text = "\n".join(script for script, _ in steps(template))
        line = next(line for line in text.split("\n") if ".[" in line)
        requirement = Requirement("piston" + line.split("'")[1].removeprefix("."))
        assert requirement.extras <= set(project["optional-dependencies"])


def test_what_is_cached_and_kept_is_what_the_steps_write():
    github = TEMPLATES["github"]["jobs"]["make"]
    (cache,) = [step["with"]["path"] for step in github["steps"] if step.get("uses", "").startswith("actions/cache")]
    assert cache == github["env"]["PISTON_CACHE_DIR"]
    gitlab = TEMPLATES["gitlab"]["make"]
    assert gitlab["variables"]["PISTON_CACHE_DIR"] in gitlab["cache"]["paths"]
    assert gitlab["artifacts"]["reports"]["junit"] == "report/junit.xml"
