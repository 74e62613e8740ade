import dataclasses

import numpy as np
import pytest
from embedded import embedder

from piston.core.bundle.golden import Golden, GoldenByTarget, GoldenOutput
from piston.core.errors import BundleCorruptError, EngineError
from piston.runtime import verify_outputs
from piston.runtime.verify_outputs import golden_of


@pytest.fixture(autouse=True)
def _texts(monkeypatch):
    monkeypatch.setattr(verify_outputs, "TEXTS", ("a b", "c d e f g h"))


def test_recorded_outputs_are_those_of_each_text_alone():
    golden = golden_of(embedder())
    assert [output.values for output in golden.outputs] == [
        (4.0, 0 + 3 + 4 + 1, 2.0),
        (6.0, 0 + 5 + 6 + 7 + 8 + 1, 2.0),
    ]
    assert (golden.noise, golden.by) == (0.0, "engine")


def test_an_engine_that_gives_the_recorded_outputs_passes():
    golden = golden_of(embedder())
    verdict = verify_outputs.verify_outputs(embedder(), golden, 1e-3)
    assert (verdict.is_passed, verdict.num_prompts, verdict.worst) == (True, 2, 0.0)


@pytest.mark.parametrize(("change", "is_passed"), [(lambda x: x * 1.0005, True), (lambda x: x * 1.002, False)])
def test_an_output_may_be_as_far_as_the_tolerance(monkeypatch, change, is_passed):
    golden, model = golden_of(embedder()), embedder()
    run = model._session.run
    monkeypatch.setattr(
        model._session, "run", lambda feeds: {"pooled": change(run(feeds)["pooled"]).astype(np.float32)}
    )
    verdict = verify_outputs.verify_outputs(model, golden, 1e-3)
    assert verdict.is_passed == is_passed
    assert len(verdict.mismatches) == (0 if is_passed else 2)
    if not is_passed:
        assert "the engine differs on 'a b': the output is 0.002 of its length away" in str(verdict.mismatches[0])


def test_what_is_not_finite_never_passes(monkeypatch):
    golden, model = golden_of(embedder()), embedder()
    monkeypatch.setattr(model._session, "run", lambda _: {"pooled": np.full((1, 3), np.nan, np.float32)})
    with pytest.raises(EngineError, match="toy computes NaN or infinity"):
        verify_outputs.verify_outputs(model, golden, 1e9)


def test_a_tokenizer_that_splits_otherwise_is_named():
    golden = golden_of(embedder())
    other = dataclasses.replace(golden.outputs[0], ids=(0, 3, 5, 1))
    verdict = verify_outputs.verify_outputs(embedder(), dataclasses.replace(golden, outputs=(other,)), 1e-3)
    assert [str(mismatch) for mismatch in verdict.mismatches] == ["the tokenizer differs on 'a b'"]


def test_the_tolerance_is_four_times_the_noise_but_not_below_a_floor():
    assert Golden(noise=0.0, by="engine").tolerance("float32", is_int8=False) == pytest.approx(1e-3)
    assert Golden(noise=0.0, by="engine").tolerance("float32", is_int8=True) == pytest.approx(0.05)
    assert Golden(noise=0.02, by="engine").tolerance("float32", is_int8=True) == pytest.approx(0.08)
    assert Golden(noise=0.0, by="canonical graph").tolerance("float16", is_int8=False) == pytest.approx(0.02)
    assert Golden(noise=0.0, by="canonical graph").tolerance("bfloat16", is_int8=True) == pytest.approx(0.1)


def test_the_file_is_read_as_it_was_written(tmp_path):
    golden = golden_of(embedder())
    GoldenByTarget(engines={"ort-cpu": golden}).write(tmp_path)
    assert GoldenByTarget.read(tmp_path).of("ort-cpu") == golden


def test_an_output_without_values_is_a_damaged_file(tmp_path):
    empty = GoldenOutput(texts=("a",), ids=(1,), types=(0,), values=())
    GoldenByTarget(engines={"ort-cpu": Golden(outputs=(empty,), noise=0.0, by="engine")}).write(tmp_path)
    with pytest.raises(BundleCorruptError, match="an output without tokens or values"):
        GoldenByTarget.read(tmp_path)
