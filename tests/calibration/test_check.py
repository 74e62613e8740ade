"""The check before a quantized directory gets its name: nothing unchecked, nothing outside its bound."""

import dataclasses

import numpy as np
import pytest

from piston.calibration import quantizer
from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions, bounds_of
from piston.calibration.recipe import SCHEMES, Recipe
from piston.calibration.schemes.w8a8 import round_all
from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.errors import EngineError, MisuseError, ShortfallError
from piston.data.held_out import HeldOut
from piston.data.overlap import Overlap
from piston.data.rows import RowOptions
from piston.evaluation.tasks.text_generation import DEFAULTS

ROWS = RowOptions(num_rows=4, seq_len=24)
SENTENCE = "the quick brown fox jumps over a lazy dog while seven wizards brew strange potions by night"
WORDS = SENTENCE.split()


def write_text(path, seed):
    rng = np.random.default_rng(seed)
    path.write_text("\n\n".join(" ".join(rng.choice(WORDS, 12)) + "." for _ in range(200)))
    return path


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt", 0)


def test_what_was_found_is_in_the_manifest(model_dir, text, tmp_path):
    result = calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8a8"), [text], rows=ROWS)
    record = Manifest.read(tmp_path / "out").made_by["calibration"]["check"]
    assert record == result.check.to_json() | {"bounds": record["bounds"]}
    assert record["near"]["tokens"] == 8 * 23  # of eight rows, the first token is context only
    assert [bound["expression"] for bound in record["bounds"]] == ["ppl<=10%"]
    assert record["generated"]


def test_a_result_outside_its_bound_is_not_written(model_dir, text, tmp_path, capsys):
    words = ["calibrate", str(model_dir), "-o", str(tmp_path / "out"), "--scheme", "w4", "--block", "32", "--quiet"]
    words += ["--data", str(text), "--samples", "4", "--seq-len", "24", "--require", "kl<=0.000000001"]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: Checked on text it was not calibrated with")
    assert "mean KL divergence is" in captured.err
    assert "top-1" in captured.err
    assert captured.out == ""
    # What GPTQ rounded is kept for another bound (test_calibrate.py); there is no model directory.
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", ".out.calibration"}


def test_a_broken_model_does_not_pass_by_default(model_dir, text, tmp_path, monkeypatch):
    def broken(*arguments):
        prepared = round_all(*arguments)
        return dataclasses.replace(prepared, scales={name: scale / 40 for name, scale in prepared.scales.items()})

    monkeypatch.setattr(quantizer, "round_all", broken)
    with pytest.raises(ShortfallError, match=r"perplexity is \d"):
        calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8a8"), [text], rows=ROWS)
    assert not (tmp_path / "out").exists()


def test_a_model_that_computes_nan_does_not_pass(model_dir, text, tmp_path, monkeypatch):
    def broken(*arguments):
        prepared = round_all(*arguments)
        return dataclasses.replace(prepared, scales=dict.fromkeys(prepared.scales, float("nan")))

    monkeypatch.setattr(quantizer, "round_all", broken)
    with pytest.raises((EngineError, ShortfallError)):
        calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8a8"), [text], rows=ROWS)
    assert not (tmp_path / "out").exists()


def test_rows_to_check_on_are_kept_apart(model_dir, text, tmp_path):
    plain = calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8a8"), [text], rows=ROWS)
    assert plain.check.held_out.warning is None
    assert len(plain.check.held_out.ids) == 8


def test_text_of_the_calibration_given_again_is_found_out(model_dir, text, tmp_path, capsys):
    words = ["calibrate", str(model_dir), "-o", str(tmp_path / "out"), "--scheme", "w8a8", "--quiet"]
    words += ["--data", str(text), "--samples", "4", "--seq-len", "24"]
    assert main([*words, "--check-data", str(text)]) == 0
    assert "rows of" in (warned := capsys.readouterr().err)
    assert "share text with the calibration rows" in warned


@pytest.mark.parametrize(("num_shared", "is_warned"), [(0, False), (3, False), (5, True), (100, True)])
def test_rows_that_share_no_more_than_texts_of_one_kind_do_are_apart(num_shared, is_warned):
    held_out = HeldOut(np.zeros((2, 64), np.int64), "rows", Overlap((1,) if num_shared else (), num_shared, 100))
    assert (held_out.warning is not None) == is_warned


def test_data_that_has_no_rows_left_to_check_on_says_so(model_dir, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 60)))
    with pytest.raises(MisuseError, match=r"4 rows and 8 to check the result on .* --check-data"):
        calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8a8"), [path], rows=ROWS)


def test_other_text_may_be_given(model_dir, text, tmp_path):
    checked = CheckOptions(bounds=("top1>=50%", "ppl<=5%"), data=write_text(tmp_path / "other.txt", 1))
    result = calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8"), checked=checked, rows=ROWS)
    assert result.check.held_out.source.endswith("other.txt")
    assert [gate.expression for gate in result.check.gates] == ["top1>=50%", "ppl<=5%"]


def test_every_scheme_has_a_bound():
    assert set(DEFAULTS) == set(SCHEMES)
    assert all(bounds_of((), scheme) for scheme in SCHEMES)


@pytest.mark.parametrize("text", ["", "ppl<=x", "kl<=2%", "answers>=1%", "kl_p99<=1"])
def test_what_is_no_bound_on_a_scheme_is_refused(text):
    with pytest.raises(MisuseError, match="--require"):
        bounds_of([text], "w8")
