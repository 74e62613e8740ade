"""A real toy model on disk: its directory run as it is, and the bundle built from it."""

import json

import pytest
from evaluated import TEXT

from piston.cli.main import main
from piston.evaluation.subject import Subject

torch = pytest.importorskip("torch")

WORDS = ("--window", "24", "--stride", "12", "--max-tokens", "70", "--answer-tokens", "6", "--quiet", "--json")


@pytest.fixture(scope="module")
def paths(toys, tmp_path_factory):
    """A model directory, the bundle built from it, and a text."""
    top = tmp_path_factory.mktemp("subject")
    (top / "model").symlink_to(toys.model_dir())
    (top / "bundle").symlink_to(toys.bundle(build={"max_batch": 2, "max_length": 80}))
    (top / "prompts").write_text("the quick\nlazy dog\n")
    (top / "text").write_text(TEXT, encoding="utf-8")
    return top


def found(capsys, paths, candidate, reference):
    words = ["--data", "text", "--prompts", "prompts"]
    words = [str(paths / word) if word in ("text", "prompts") else word for word in words]
    assert main(["eval", str(paths / candidate), "--reference", str(paths / reference), *words, *WORDS]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["model", "bundle"])
def test_a_real_model_against_itself_diverges_by_exactly_nothing(capsys, paths, name):
    result = found(capsys, paths, name, name)
    assert result["agreement"]["kl"]["max"] == 0
    assert result["agreement"]["top1"]["value"] == 1
    assert result["agreement"]["perplexity_ratio"]["value"] == 1
    assert result["answers"]["same"]["value"] == 1


def test_a_bundle_agrees_with_the_model_directory_it_was_built_from(capsys, paths):
    result = found(capsys, paths, "bundle", "model")
    assert (result["candidate"]["kind"], result["reference"]["kind"]) == ("bundle", "model")
    assert 0 < result["agreement"]["kl"]["max"] < 1e-8
    assert result["agreement"]["perplexity_ratio"]["value"] == pytest.approx(1, abs=1e-5)


def test_positions_are_those_the_engine_was_built_for(paths):
    assert Subject.read(paths / "bundle").max_positions == 80
    assert Subject.read(paths / "model").max_positions == 96
