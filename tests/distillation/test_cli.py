"""The distill verb: the ranking without training, the page, and wrong usage in one line."""

import json

import pytest
import torch

from piston.cli.main import main
from piston.distillation.distill import distill
from piston.distillation.importance import Ranking
from piston.distillation.loss import Judged
from piston.distillation.options import DistillOptions, TrainingOptions
from piston.distillation.pruning import Goal
from piston.distillation.report import page_of
from piston.distillation.result import Distilled
from piston.distillation.training import Moment, Run


def words(teacher, text, *more):
    return ["distill", str(teacher), "--data", str(text), "--seq-len", "24", "--quiet", *map(str, more)]


def test_a_dry_run_prints_the_ranking_and_writes_nothing(teacher, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    goals = ["--prune", "layers=1", "--prune", "ffn=64", "--prune", "heads=1"]
    assert main(words(teacher, text, "--dry-run", *goals)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "layer  KL without it, nats"
    assert sorted(line.split()[-1] for line in printed[1:3]) == ["kept", "removed"]
    assert any("48 of 112" in line for line in printed)
    assert list(tmp_path.iterdir()) == []


def test_the_ranking_as_json_has_every_number_and_what_is_kept(teacher, text, capsys):
    assert main(words(teacher, text, "--dry-run", "--prune", "layers=1", "--prune", "ffn=64", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["ranking"]["layers"]) == ["0", "1"]
    (layer,) = found["kept"]["layers"]
    assert found["ranking"]["layers"][str(layer)] == max(found["ranking"]["layers"].values())
    assert len(found["ranking"]["ffn"]["0"]) == 112
    assert len(found["kept"]["ffn"][str(layer)]) == 64


def test_the_result_is_printed_with_the_next_commands(teacher, text, tmp_path, capsys):
    out, page = tmp_path / "student", tmp_path / "page.html"
    assert main(words(teacher, text, "-o", out, "--prune", "ffn=64", "--steps", 1, "--report", page)) == 0
    printed = capsys.readouterr().out
    assert "trained: 1 steps" in printed
    assert f"next: piston export {out} -o MODEL" in printed
    assert "KL divergence by step" in page.read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-o", "out"], "Give --steps N or --minutes M"),
        (["--steps", "1"], "Give -o DIR"),
        (["--dry-run"], "--dry-run ranks what --prune"),
        (["--dry-run", "--prune", "ffn=64", "--steps", "5"], "trains nothing; leave --steps out"),
        (["--dry-run", "--prune", "ffn=64", "--report", "page.html"], "trains nothing; leave --report out"),
        (["-o", "out", "--steps", "1", "--prune", "layers=9"], "the model has 2 layers"),
        (["-o", "out", "--steps", "1", "--lr", "0"], "--lr 0.0 must be more than 0"),
        (["-o", "out", "--steps", "1", "--scheme", "w8a8"], "give --start DIR"),
        (["-o", "out", "--steps", "1", "--seq-len", "0"], "--seq-len 0 must be at least 2"),
        (["-o", "out", "--steps", "1", "--seed", "-1"], "--seed -1 must be 0 or more"),
        (["-o", "out", "--steps", "1", "--seed", "9" * 30], "must be 0 or more, and below 2**63"),
        (
            ["-o", "out", "--steps", "1", "--temperature", "1e300"],
            "--temperature 1e+300 must be more than 0, and 1e+09",
        ),
        (["-o", "out", "--steps", "1", "--hidden", "nan"], "--hidden nan must be from 0 to 1e+09"),
    ],
)
def test_wrong_usage_is_one_line(teacher, text, capsys, more, message):
    assert main(words(teacher, text, *more)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_data_must_be_named(teacher, capsys):
    assert main(["distill", str(teacher), "-o", "out", "--steps", "1"]) == 2
    assert "Give --data FILE" in capsys.readouterr().err


def test_the_page_shows_the_curve_before_and_after():
    moments = [Moment(0, 0.0, None, Judged(0.2, 0.8, 21.0, 20.0)), Moment(9, 60.0, 0.1, Judged(0.05, 0.9, 20.2, 20.0))]
    result = Distilled(
        "toy", "LlamaForCausalLM", (2_000_000, 1_000_000), Ranking({0: 0.1, 1: 0.3}), Run(9, 60.0, moments), 0.5, 90, ()
    )
    page = page_of(result)
    for shown in ("0.0500", "0.2000 before training", "1.0 M", "9 steps", "KL divergence without each layer"):
        assert shown in page


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
def test_a_gpu_trains_as_the_cpu_does(teacher, text, tmp_path):
    kl = {}
    for device in ("cpu", "cuda"):
        options = DistillOptions(prune=Goal(ffn=64, sparsity=True), seq_len=24, device=device)
        training = TrainingOptions(steps=4, rows=2, learning_rate=1e-3)
        kl[device] = distill(str(teacher), tmp_path / device, [text], options, training).ends[1].held_out.kl
    assert kl["cuda"] == pytest.approx(kl["cpu"], rel=0.02)
