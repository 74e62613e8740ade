"""Tiny models of every encoder task, exported and built once."""

import pytest
from encoders import write_task_checkpoint

from piston.engines import build
from piston.export import export_model

NER = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))
# name -> task, and the config of its checkpoint
MODELS = {
    "single": ("text-classification", {"id2label": {0: "bad", 1: "fair", 2: "good"}}),
    "multi": (
        "text-classification",
        {"id2label": {0: "hate", 1: "spam"}, "problem_type": "multi_label_classification"},
    ),
    "regression": ("text-classification", {"id2label": {0: "stars"}, "problem_type": "regression"}),
    "tagger": ("token-classification", {"id2label": NER}),
    "answerer": ("question-answering", {}),
    "reranker": (
        "text-ranking",
        {
            "id2label": {0: "LABEL_0"},
            "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0.0"},
        },
    ),
}


class EncoderToys:
    """Checkpoints, model directories and bundles by name of MODELS, each made when it is first asked for."""

    def __init__(self, root):
        self.root = root
        self.models = {}

    def checkpoint(self, name):
        """The directory of the checkpoint; its module of transformers is in `models`."""
        if name not in self.models:
            task, config = MODELS[name]
            self.models[name] = write_task_checkpoint(self.root / name / "checkpoint", task, **config)
        return self.root / name / "checkpoint"

    def model(self, name):
        """The model directory."""
        out = self.root / name / "model"
        if not out.exists():
            export_model(self.checkpoint(name), out)
        return out

    def bundle(self, name):
        """The bundle for ort-cpu."""
        out = self.root / name / "bundle"
        if not out.exists():
            build(self.model(name), out)
        return out


@pytest.fixture(scope="session")
def encoder_toys(tmp_path_factory):
    """Tiny models of every encoder task."""
    return EncoderToys(tmp_path_factory.mktemp("encoders"))
