"""Checkpoints of encoder tasks: which task each is for, and what is refused."""

import json

import pytest
from encoders import write_task_checkpoint
from safetensors.torch import load_file, save_file

from piston.checkpoint.task import task_of
from piston.core.errors import CheckpointError, MisuseError, UnsupportedModelError
from piston.export import ExportOptions, export_model


def changed(directory, **config):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("text-classification", {}),
        ("token-classification", {}),
        ("question-answering", {}),
        ("text-ranking", {"sentence_transformers": {"version": "5.0.0"}}),
        ("text-ranking", {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}),
    ],
)
def test_a_checkpoint_as_transformers_writes_it_says_its_task(tmp_path, task, config):
    write_task_checkpoint(tmp_path, task)
    changed(tmp_path, **config)
    assert task_of(tmp_path) == task


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path):
    write_task_checkpoint(tmp_path / "in", "token-classification")
    weights = load_file(tmp_path / "in/model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][95, 3] = float("nan")  # of a token that no text needs to have
    save_file(weights, tmp_path / "in/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight of in has values that are NaN or infinite"):
        export_model(tmp_path / "in", tmp_path / "out")


def test_a_context_of_special_tokens_alone_is_refused_before_anything_is_traced(tmp_path):
    """[CLS] and [SEP] leave no room for a text, and `piston build` would have nothing to compare."""
    write_task_checkpoint(tmp_path / "in", "text-classification")
    with pytest.raises(MisuseError, match="2 positions are too few to use the model; export with --context 3 or more"):
        export_model(tmp_path / "in", tmp_path / "out", ExportOptions(context=2))
    assert not (tmp_path / "out").exists()


def test_fewer_labels_than_logits_are_refused(tmp_path):
    write_task_checkpoint(tmp_path / "in", "text-classification", num_labels=3)
    changed(tmp_path / "in", id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})
    with pytest.raises(CheckpointError, match=r"classifier\.(weight|bias)"):
        export_model(tmp_path / "in", tmp_path / "out")


def test_three_logits_are_no_rank(tmp_path):
    write_task_checkpoint(tmp_path / "in", "text-classification", num_labels=3)
    with pytest.raises(UnsupportedModelError, match=r"has 3 logits .* export it with --task text-classification"):
        export_model(tmp_path / "in", tmp_path / "out", ExportOptions(task="text-ranking"))


def test_an_unknown_function_of_scores_is_refused(tmp_path):
    write_task_checkpoint(tmp_path / "in", "text-ranking", num_labels=1)
    changed(tmp_path / "in", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(UnsupportedModelError, match=r"puts its scores through .*Tanh'; supported: Sigmoid, Identity"):
        export_model(tmp_path / "in", tmp_path / "out")
