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


@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
@pytest.mark.parametrize("weight", ["bert.embeddings.word_embeddings.weight", "classifier.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path, task, weight, value):
    write_task_checkpoint(tmp_path / "in", task)
    weights = load_file(tmp_path / "in/model.safetensors")
    weights[weight][-1, 3] = value  # of a token that no text needs to have, or of a label
    save_file(weights, tmp_path / "in/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{weight} of in has values that are NaN or infinite"):
        export_model(tmp_path / "in", tmp_path / "out")


def test_a_context_of_special_tokens_alone_is_refused_before_anything_is_traced(tmp_path):
    """[CLS] and [SEP] leave no room for a text, and `piston build` would have nothing to compare."""
    write_task_checkpoint(tmp_path / "in", "text-classification")
    with pytest.raises(MisuseError, match="2 positions are too few to use the model; export with --context 3 or more"):
        export_model(tmp_path / "in", tmp_path / "out", ExportOptions(context=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}},
            r"stores classifier\.(weight|bias) as \[3.*, but its config has 2 labels \(id2label, num_labels\)",
        ),
        ({"id2label": {"0": "bad", "1": "good"}, "num_labels": 3}, "names 2 labels, but num_labels says 3"),
        ({"id2label": ["bad", "fair", "good"]}, r'id2label in the config of in must be an object such as \{"0": "bad"'),
        ({"id2label": {"a": "bad", "b": "fair", "c": "good"}}, "id2label in the config of in must be an object"),
        ({"label2id": ["bad", "fair", "good"]}, "label2id in the config of in must be an object"),
        ({"id2label": {"0": "bad", "1": None, "2": "good"}}, "id2label of in names label 1 None; it must be a text"),
    ],
)
def test_labels_that_are_not_those_of_the_logits_are_refused(tmp_path, config, message):
    write_task_checkpoint(tmp_path / "in", "text-classification", num_labels=3)
    changed(tmp_path / "in", **config)
    with pytest.raises(CheckpointError, match=message):
        export_model(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_three_logits_are_no_rank(tmp_path):
    write_task_checkpoint(tmp_path / "in", "text-classification", num_labels=3)
    with pytest.raises(UnsupportedModelError, match=r"has 3 logits .* export it with --task text-classification"):
        export_model(tmp_path / "in", tmp_path / "out", ExportOptions(task="text-ranking"))


def test_an_unknown_function_of_scores_is_refused(tmp_path):
    write_task_checkpoint(tmp_path / "in", "text-ranking", num_labels=1)
    changed(tmp_path / "in", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(UnsupportedModelError, match=r"puts its scores through .*Tanh'; supported: Sigmoid, Identity"):
        export_model(tmp_path / "in", tmp_path / "out")
