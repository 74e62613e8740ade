"""Training layer by layer on a toy: what it reaches, what it leaves alone, how it goes on after a kill."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from piston.core.errors import MisuseError
from piston.distillation import layerwise as layerwise_module
from piston.distillation.distill import distill
from piston.distillation.layerwise import LayerTrainer
from piston.distillation.options import DistillOptions, TrainingOptions
from piston.distillation.pruning import Goal
from piston.distillation.source import Data, Source
from piston.distillation.sparsity import is_sparse

W4 = DistillOptions(scheme="w4", block=32, seq_len=24)


def layerwise(steps=20, **options):
    return TrainingOptions(**{"steps": steps, "rows": 4, "layerwise": True, "learning_rate": 0.03} | options)


def weights(directory):
    return load_file(directory / "model.safetensors")


@pytest.fixture(scope="module")
def w4_student(teacher, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("layerwise") / "student"
    return out, distill(str(teacher), out, [text], W4, layerwise(save_every=1e-9))


def test_each_layer_is_trained_and_rows_that_are_not_trained_on_gain(w4_student):
    moments = w4_student[1].run.moments
    assert [moment.step for moment in moments] == [0, 20, 40]
    assert moments[-1].held_out.kl < 0.8 * moments[0].held_out.kl


def test_a_student_that_is_its_teacher_is_not_changed(teacher, text, tmp_path):
    distill(str(teacher), tmp_path / "student", [text], DistillOptions(seq_len=24), layerwise(3))
    before, after = Source.open(str(teacher)).model.state_dict(), weights(tmp_path / "student")
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_layers_are_trained_on_what_the_trained_layers_before_them_give(teacher, text, tmp_path, monkeypatch):
    """The second layer reads what a plain pass of the written student gives it."""
    read = []
    train = LayerTrainer._train_layer

    def seen(trainer, layer, inputs, goal, call, progress):
        read.append((trainer.ids, inputs, goal))
        return train(trainer, layer, inputs, goal, call, progress)

    monkeypatch.setattr(LayerTrainer, "_train_layer", seen)
    distill(str(teacher), tmp_path / "student", [text], W4, layerwise(3))
    ids, inputs, goal = read[1]
    student, whole = (Source.open(str(place)).model for place in (tmp_path / "student", teacher))
    with torch.no_grad():
        expected = student(ids, output_hidden_states=True).hidden_states[1]
        answers = []
        handle = whole.model.layers[1].register_forward_hook(lambda _, __, found: answers.append(found))
        whole(ids)
        handle.remove()
    torch.testing.assert_close(inputs, expected)
    torch.testing.assert_close(goal, answers[0])


def test_a_run_that_was_killed_between_layers_ends_bit_for_bit_as_one_that_was_not(teacher, text, w4_student, tmp_path):
    train = LayerTrainer._train_layer

    def killed(trainer, *rest):
        if trainer.run.layers == 1:
            raise KeyboardInterrupt
        return train(trainer, *rest)

    out = tmp_path / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerTrainer, "_train_layer", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(str(teacher), out, [text], W4, layerwise(save_every=1e-9))
    remarks = []
    distill(str(teacher), out, [text], W4, layerwise(), resume=True, remark=remarks.append)
    assert remarks[0] == "going on from step 20"
    expected, found = weights(w4_student[0]), weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_zeros_stay_zero(teacher, text, tmp_path):
    options = DistillOptions(prune=Goal(sparsity=True), seq_len=24)
    result = distill(str(teacher), tmp_path / "student", [text], options, layerwise())
    first, last = result.ends
    assert last.held_out.kl < first.held_out.kl
    assert all(is_sparse(value) for name, value in weights(tmp_path / "student").items() if "_proj" in name)


def test_products_of_bfloat16_train_too(teacher, text, tmp_path):
    for name, options in (("layers", layerwise(dtype="bf16")), ("model", TrainingOptions(steps=12, dtype="bf16"))):
        first, last = distill(str(teacher), tmp_path / name, [text], W4, options).ends
        assert last.held_out.kl < first.held_out.kl


def test_minutes_are_of_all_layers(teacher, text, tmp_path):
    result = distill(str(teacher), tmp_path / "student", [text], W4, layerwise(None, minutes=0.02, save_every=1e-9))
    assert len(result.run.moments) == 3
    assert result.run.seconds < 2 * 1.2


@pytest.mark.parametrize(
    ("goal", "options", "reason"),
    [
        (Goal(layers=1), {}, "leave --student and --prune layers out"),
        (Goal(), {"hidden": 1.0}, "leave --hidden and --temperature out"),
        (Goal(), {"temperature": 2.0}, "leave --hidden and --temperature out"),
    ],
)
def test_what_has_no_meaning_for_layers_alone_is_refused(teacher, text, tmp_path, goal, options, reason):
    with pytest.raises(MisuseError, match=reason):
        distill(str(teacher), tmp_path / "s", [text], DistillOptions(prune=goal, seq_len=24), layerwise(**options))


def test_the_rate_is_in_steps_of_each_matrix(teacher, text, tmp_path, monkeypatch):
    """Of a layer whose matrices differ a hundredfold each moves by the same share: steps of AdamW are of the rate."""
    moved = {}
    train = LayerTrainer._train_layer

    def watched(trainer, layer, *rest):
        before = {name: item.detach().clone() for name, item in layer.named_parameters()}
        losses = train(trainer, layer, *rest)
        for name, item in layer.named_parameters():
            if name.endswith("proj.weight"):
                moved[name] = float((item.detach() - before[name]).abs().mean() / before[name].abs().mean())
        return losses

    source = Source.open(str(teacher)).model
    with torch.no_grad():
        for layer in source.model.layers:
            layer.mlp.up_proj.weight *= 100
            layer.mlp.down_proj.weight /= 100
    source.save_pretrained(tmp_path / "teacher")
    for path in teacher.iterdir():
        if path.name.startswith("tokenizer"):
            (tmp_path / "teacher" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(LayerTrainer, "_train_layer", watched)
    distill(str(tmp_path / "teacher"), tmp_path / "student", [text], W4, layerwise(1))
    up, down = moved["mlp.up_proj.weight"], moved["mlp.down_proj.weight"]
    assert 0.5 < up / down < 2


def test_rows_that_are_left_out_are_told(teacher, text, tmp_path, monkeypatch):
    monkeypatch.setattr(layerwise_module, "MOST_VALUES", 5 * 24 * 64)
    remarks = []
    distill(str(teacher), tmp_path / "student", [text], W4, layerwise(2), remark=remarks.append)
    assert any("layers are trained on 5 of " in remark for remark in remarks)


def test_no_more_rows_are_computed_than_are_trained_on(teacher, text, tmp_path, monkeypatch):
    read = []
    train = LayerTrainer._train_layer

    def seen(trainer, layer, inputs, *rest):
        read.append((len(inputs), len(trainer.data.train)))
        return train(trainer, layer, inputs, *rest)

    monkeypatch.setattr(LayerTrainer, "_train_layer", seen)
    distill(str(teacher), tmp_path / "student", [text], W4, layerwise(3))
    assert read[0][1] > 12
    assert [count for count, _ in read] == [12, 12]


def test_the_time_left_has_the_passes_that_train_nothing(teacher, text, tmp_path):
    """Two layers take three passes over all rows; one is over, and of the first layer's training a half."""
    source = Source.open(str(teacher)).model.requires_grad_(requires_grad=True)
    data = Data(np.zeros((8, 24), np.int64), np.zeros((1, 24), np.int64), None)
    trainer = LayerTrainer(source, {}, None, data, layerwise(2), tmp_path, model=source)
    assert trainer.seconds_left == math.inf
    trainer.passes, trainer.pass_seconds = 1.0, 10.0
    assert trainer.seconds_left == math.inf
    trainer.run.seconds, trainer.layer_step = 5.0, 1
    assert trainer.seconds_left == pytest.approx(2 * 10 + 3 * 5)
