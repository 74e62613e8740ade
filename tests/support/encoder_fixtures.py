"""Tiny models of every encoder task, exported and built once."""

import pytest
from task_toys import TaskToys

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
    "embedder": ("feature-extraction", {}),
    "reranker": (
        "text-ranking",
        {
            "id2label": {0: "LABEL_0"},
            "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0.0"},
        },
    ),
}
SIZES = {"hidden_size": 128, "intermediate_size": 192}  # that Piston's own kernels take
# To calibrate on: pieces of the tokenizer's words.
PARTS = ["hello", "world", "in", "paris", "wo", "rld", "a", "b", "c", "?"]
CALIBRATED_ON = "\n".join(f"{first} {second} in paris" for first in PARTS for second in PARTS)


class EncoderToys(TaskToys):
    """Toys by name of MODELS."""

    def exported(self, name):
        """See TaskToys."""
        from encoders import write_task_checkpoint

        task, config = MODELS[name]
        return self.toys.exported(write_task_checkpoint, task, **SIZES, **config)

    def calibrated(self, name, scheme):
        """See TaskToys."""
        from piston.calibration.recipe import Recipe

        bound = "cosine>=0.5" if MODELS[name][0] == "feature-extraction" else "distance<=100%"  # the weights are random
        rows = {"num_rows": 8, "seq_len": 12, "seed": 1}
        return self.toys.calibrated(self.exported(name), Recipe(scheme=scheme), CALIBRATED_ON, bounds=(bound,), **rows)

    def reference(self, name):
        """The module of transformers."""
        import transformers
        from encoders import HEADS

        auto = getattr(transformers, HEADS[MODELS[name][0]])
        return auto.from_pretrained(self.checkpoint(name)).eval()


@pytest.fixture(scope="session")
def encoder_toys(toys):
    """Tiny models of every encoder task."""
    return EncoderToys(toys)
