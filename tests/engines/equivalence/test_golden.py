import dataclasses
import shutil

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint

from piston.cli.main import main
from piston.core.bundle.golden import GoldenByTarget
from piston.core.bundle.manifest import Manifest
from piston.engines import build
from piston.engines.equivalence.golden import record_answers


@pytest.fixture(scope="module")
def bundle(toys):
    return toys.bundle(build={"max_batch": 2, "max_length": 60})


def test_the_answers_are_the_greedy_ones_of_the_checkpoint(bundle, tmp_path):
    model = write_checkpoint(tmp_path / "checkpoint", "llama", torch.float32)
    for answer in GoldenByTarget.read(bundle).of("ort-cpu").answers:
        ids = torch.tensor([[*answer.prompt_ids, *answer.token_ids]])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, len(answer.prompt_ids) - 1 : -1].numpy()
        assert tuple(logits.argmax(axis=-1)) == answer.token_ids
        best = np.sort(logits, axis=-1)
        np.testing.assert_allclose(best[:, -1] - best[:, -2], answer.margins, atol=1e-3)


def test_an_engine_in_float_is_off_by_less_than_its_floor(bundle):
    assert GoldenByTarget.read(bundle).of("ort-cpu").noise < 0.005


def test_the_answers_are_recorded_in_the_manifest(bundle):
    assert "verify.json" in Manifest.read(bundle).files


def test_the_bundle_verifies(bundle, capsys):
    assert main(["verify", str(bundle), "--quiet"]) == 0
    assert "ort-cpu answers as built" in capsys.readouterr().out


def test_a_short_engine_gets_short_answers(model_dir, tmp_path):
    build(model_dir, tmp_path / "short", max_length=5)
    for answer in GoldenByTarget.read(tmp_path / "short").of("ort-cpu").answers:
        assert len(answer.prompt_ids) + len(answer.token_ids) <= 5
    assert main(["verify", str(tmp_path / "short"), "--quiet"]) == 0


def test_an_engine_that_cannot_run_here_gets_the_canonical_graphs_answers(model_dir, bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "b")
    model, (spec,) = Manifest.read(model_dir), Manifest.read(bundle).engines
    elsewhere = dataclasses.replace(spec, target="tensorrt")
    record_answers(tmp_path / "b", model_dir / "model.onnx", model, [spec, elsewhere])
    found = GoldenByTarget.read(tmp_path / "b")
    own, others = found.of("ort-cpu"), found.of("tensorrt")
    assert (own.by, others.by) == ("engine", "canonical graph")
    assert [answer.token_ids for answer in own.answers] == [answer.token_ids for answer in others.answers]
    np.testing.assert_allclose(
        [answer.margins for answer in own.answers], [answer.margins for answer in others.answers], atol=1e-3
    )
