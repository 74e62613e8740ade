"""Tiny models of every encoder task, exported and built once."""

import pytest

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

    def __init__(self, toys):
        self.toys = toys

    def model(self, name):
        """The model directory."""
        from encoders import write_task_checkpoint

        task, config = MODELS[name]
        return self.toys.exported(write_task_checkpoint, task, **config)

    def checkpoint(self, name):
        """The directory of the checkpoint."""
        return self.model(name).parent / "checkpoint"

    def reference(self, name):
        """The module of transformers."""
        import transformers
        from encoders import HEADS

        auto = getattr(transformers, HEADS[MODELS[name][0]])
        return auto.from_pretrained(self.checkpoint(name)).eval()

    def bundle(self, name):
        """The bundle for ort-cpu."""
        return self.toys.built(self.model(name))


@pytest.fixture(scope="session")
def encoder_toys(toys):
    """Tiny models of every encoder task."""
    return EncoderToys(toys)
