"""A distillation end to end on a toy: what it reaches, how it goes on after a kill, what it refuses."""

import builtins
import errno
import json

import numpy as np
import pytest
import torch
from checkpoints import edit_config
from safetensors.torch import load_file, save_file

from piston.core.errors import Error, MisuseError, UnsupportedModelError
from piston.distillation import training
from piston.distillation.distill import distill
from piston.distillation.options import DistillOptions, TrainingOptions
from piston.distillation.pruning import Goal
from piston.distillation.source import Source, batch
from piston.distillation.sparsity import is_sparse, two_of_four
from piston.distillation.student import from_config
from piston.distillation.training import Trainer

SPARSE = DistillOptions(prune=Goal(sparsity=True), seq_len=24)


def trained(steps=6, **options):
    return TrainingOptions(**{"steps": steps, "rows": 2, "learning_rate": 3e-3} | options)


def weights(directory):
    return load_file(directory / "model.safetensors")


@pytest.fixture(scope="module")
def sparse_student(teacher, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("sparse") / "student"
    result = distill(str(teacher), out, [text], SPARSE, trained(12))
    return out, result


def test_training_lowers_the_divergence_of_rows_that_are_not_trained_on(sparse_student):
    first, last = sparse_student[1].ends
    assert (first.step, last.step) == (0, 12)
    assert last.held_out.kl < 0.9 * first.held_out.kl


def test_zeros_stay_zero_through_training(sparse_student):
    found = {name: is_sparse(value) for name, value in weights(sparse_student[0]).items() if "_proj" in name}
    assert len(found) == 14
    assert all(found.values())


def test_the_record_names_data_steps_and_each_judged_moment(sparse_student):
    record = json.loads((sparse_student[0] / "distillation.json").read_text())
    assert record["steps"] == 12
    assert [moment["step"] for moment in record["moments"]] == [0, 12]
    assert record["data"]["files"][0]["name"] == "prose.txt"


def test_a_run_that_was_killed_and_resumed_ends_bit_for_bit_as_one_that_was_not(
    teacher, text, sparse_student, tmp_path
):
    step = Trainer._step

    def killed(trainer):
        if trainer.run.step == 7:
            raise KeyboardInterrupt  # as a kill, it leaves what is on disk
        return step(trainer)

    out = tmp_path / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(str(teacher), out, [text], SPARSE, trained(12, save_every=1e-9))
    assert not out.exists()
    with pytest.raises(MisuseError, match="pass --resume"):
        distill(str(teacher), out, [text], SPARSE, trained(12))
    distill(str(teacher), out, [text], SPARSE, trained(12), resume=True)
    expected, found = weights(sparse_student[0]), weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_full_disk_keeps_the_state_that_was_saved_before(teacher, text, tmp_path):
    out, kept = tmp_path / "student", tmp_path / ".student.distill"
    save, calls = torch.save, []

    def full(state, file):
        calls.append(state["step"])
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.torch, "save", full)
        with pytest.raises(Error, match=r"is full. The work so far is kept in .*run the same command again"):
            distill(str(teacher), out, [text], SPARSE, trained(save_every=1e-9))
    assert sorted(path.name for path in kept.iterdir() if path.is_file()) == ["state.pt"]
    remarks = []
    distill(str(teacher), out, [text], SPARSE, trained(), resume=True, remark=remarks.append)
    assert remarks[0] == "going on from step 1"
    assert not kept.exists()


def test_a_state_of_other_options_is_not_resumed(teacher, text, tmp_path):
    out = tmp_path / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "judge", builtins.exit)
        with pytest.raises(SystemExit):
            distill(str(teacher), out, [text], SPARSE, trained())
    torch.save({"key": "another"}, tmp_path / ".student.distill/state.pt")
    with pytest.raises(MisuseError, match="another teacher, other data or other options"):
        distill(str(teacher), out, [text], SPARSE, trained(), resume=True)


def test_answers_from_the_disk_are_those_of_the_model(teacher, text, tmp_path):
    results = [
        distill(
            str(teacher),
            tmp_path / name,
            [text],
            DistillOptions(prune=Goal(ffn=64), seq_len=24, cache_bytes=size),
            trained(),
        )
        for name, size in (("kept", 10**8), ("computed", 0))
    ]
    assert results[0].run.moments[-1].held_out == results[1].run.moments[-1].held_out


def test_hidden_states_are_compared_layer_by_layer(teacher, text, tmp_path):
    options = DistillOptions(prune=Goal(ffn=64), seq_len=24)
    plain, hidden = (
        distill(str(teacher), tmp_path / str(weight), [text], options, trained(2, hidden=weight))
        for weight in (0.0, 1.0)
    )
    assert hidden.run.moments[-1].loss > plain.run.moments[-1].loss


def test_too_little_time_says_that_nothing_was_trained(teacher, text, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fraction", 1.0)
        result = distill(str(teacher), tmp_path / "student", [text], SPARSE, trained(None, minutes=1e-6))
    assert "not one step was finished" in result.notes[-1]


def test_no_steps_make_the_student_and_train_nothing(teacher, text, tmp_path):
    result = distill(str(teacher), tmp_path / "student", [text], SPARSE, trained(0))
    assert [moment.step for moment in result.run.moments] == [0]
    assert result.notes == ()


def test_scales_are_not_counted_among_the_parameters(teacher, text, tmp_path):
    options = DistillOptions(scheme="w8", seq_len=24)
    result = distill(str(teacher), tmp_path / "student", [text], options, trained(0))
    assert result.parameters[0] == result.parameters[1]


def test_too_little_data_is_refused_with_the_numbers(teacher, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("One line of text.\n" * 3)
    with pytest.raises(MisuseError, match=r"enough for \d different rows of 24"):
        distill(str(teacher), tmp_path / "student", [short], SPARSE, trained())


def test_a_student_of_another_vocabulary_is_refused(teacher, text, tmp_path):
    config = tmp_path / "config.json"
    config.write_text((teacher / "config.json").read_text())
    edit_config(tmp_path, vocab_size=128)
    with pytest.raises(MisuseError, match=r"vocabulary of 128 tokens, the teacher 320"):
        distill(str(teacher), tmp_path / "student", [text], DistillOptions(config=config, seq_len=24), trained())


def test_a_student_of_other_sizes_begins_with_what_fits(teacher, text, tmp_path):
    config = tmp_path / "config.json"
    config.write_text((teacher / "config.json").read_text())
    edit_config(tmp_path, num_hidden_layers=1)
    result = distill(str(teacher), tmp_path / "student", [text], DistillOptions(config=config, seq_len=24), trained(2))
    found = len(weights(tmp_path / "student"))
    assert result.notes[0].startswith(f"{found} of the student's")


def test_a_quantized_teacher_is_refused(teacher, text, tmp_path):
    copy = tmp_path / "teacher"
    copy.mkdir()
    for path in teacher.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    edit_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModelError, match="quantized already"):
        distill(str(copy), tmp_path / "student", [text], SPARSE, trained())


def test_zeros_of_a_sparse_teacher_are_kept_and_named(teacher, text, tmp_path):
    copy = tmp_path / "teacher"
    copy.mkdir()
    for path in teacher.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    state = weights(copy)
    name = "model.layers.0.mlp.down_proj.weight"
    state[name] = state[name] * two_of_four(state[name])
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    result = distill(
        str(copy), tmp_path / "student", [text], DistillOptions(prune=Goal(layers=1), seq_len=24), trained(2)
    )
    assert result.notes in {("1 linears are 2:4 sparse already; their zeros are kept.",), ()}
    left = [
        is_sparse(value)
        for key, value in weights(tmp_path / "student").items()
        if key.endswith("0.mlp.down_proj.weight")
    ]
    assert left == [bool(result.notes)]


def test_two_of_four_keeps_the_largest_by_what_they_read():
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert two_of_four(weight).tolist() == [[True, True, False, False]]
    assert two_of_four(weight, torch.tensor([0.01, 1.0, 1.0, 100.0])).tolist() == [[False, True, False, True]]


def test_no_output_is_left_without_weights_by_inputs_that_were_never_read():
    weight = torch.tensor([[0.0, 0.0, 0.5, 2.0]])
    assert two_of_four(weight, torch.tensor([1.0, 1.0, 0.0, 0.0])).tolist() == [[False, False, True, True]]


def test_every_row_is_read_once_an_epoch():
    places = np.concatenate([batch(10, step, 4, 3) for step in range(5)])
    assert sorted(places[:10]) == sorted(places[10:]) == list(range(10))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 10**9}, r"describes 1,000,000,000 layers"),
        ({"intermediate_size": 10**9}, r"describes [\d,]+ weights, the teacher has [\d,]+"),
        ({"num_hidden_layers": 3}, r"describes [\d,]+ weights, the teacher has [\d,]+"),
    ],
)
def test_a_student_larger_than_its_teacher_is_refused_before_memory_is_taken(teacher, tmp_path, changes, reason):
    config = tmp_path / "config.json"
    config.write_text((teacher / "config.json").read_text())
    edit_config(tmp_path, **changes)
    source = Source.open(str(teacher))
    with pytest.raises(MisuseError, match=reason):
        from_config(source.model, config)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "3"])
def test_what_is_no_config_of_a_student_is_refused(teacher, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(MisuseError, match=r"--student: .*config\.json (cannot be read|holds no JSON object)"):
        from_config(None, tmp_path)
