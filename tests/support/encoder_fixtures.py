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


class EncoderToys:
    """Checkpoints, model directories and bundles by name of MODELS, each made when it is first asked for."""

    def __init__(self, toys):
        self.toys = toys

    def model(self, name, scheme="fp"):
        """The model directory, in float or calibrated."""
        from encoders import write_task_checkpoint

        task, config = MODELS[name]
        model_dir = self.toys.exported(write_task_checkpoint, task, **SIZES, **config)
        if scheme == "fp":
            return model_dir
        from piston.calibration.recipe import Recipe

        bound = "cosine>=0.5" if task == "feature-extraction" else "distance<=100%"  # the weights are random
        rows = {"num_rows": 8, "seq_len": 12, "seed": 1}
        return self.toys.calibrated(model_dir, Recipe(scheme=scheme), CALIBRATED_ON, bounds=(bound,), **rows)

    def checkpoint(self, name):
        """The directory of the checkpoint."""
        return self.model(name).parent / "checkpoint"

    def reference(self, name):
        """The module of transformers."""
        import transformers
        from encoders import HEADS

        auto = getattr(transformers, HEADS[MODELS[name][0]])
        return auto.from_pretrained(self.checkpoint(name)).eval()

    def bundle(self, name, scheme="fp"):
        """The bundle for ort-cpu."""
        return self.toys.built(self.model(name, scheme))

    def everywhere(self, name, scheme):
        """The bundle for ort-cpu, and for Piston's own kernels where they run."""
        from own_kernels import why_not

        from piston.runtime import kernels

        targets = ("ort-cpu",) if why_not() else ("ort-cpu", kernels.TARGET)
        return self.toys.built(self.model(name, scheme), targets)


@pytest.fixture(scope="session")
def encoder_toys(toys):
    """Tiny models of every encoder task."""
    return EncoderToys(toys)
