"""Tiny encoder-decoders for text and for speech, of sizes that Piston's own kernels take, exported and built once."""

import importlib
from typing import ClassVar

import pytest
from task_toys import TaskToys

# T5's attention of the decoder over itself has a bias, and stays with ONNX Runtime.
T5 = {"d_model": 128, "d_kv": 32, "d_ff": 192, "num_heads": 4, "num_decoder_layers": 2}
BART = {
    "d_model": 128,
    "encoder_ffn_dim": 192,
    "decoder_ffn_dim": 192,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "activation_function": "gelu",
}
MARIAN = BART | {"activation_function": "swish"}
# Sure enough of itself that what it says is accepted, as a trained model's is, and not decoded again.
WHISPER = {"d_model": 128, "encoder_ffn_dim": 192, "decoder_ffn_dim": 192, "sharpness": 6, "max_target_positions": 14}
# name -> module and function that write the checkpoint, and how they are called
MODELS = {
    "flan-t5": ("encoder_decoders", "write_text_checkpoint", ("flan-t5",), T5),
    "bart": ("encoder_decoders", "write_text_checkpoint", ("bart",), BART),
    "marian": ("sentencepiece_files", "write_marian", (), {"codes": [">>de<<", ">>nl<<"], "model": MARIAN}),
    "nllb": ("encoder_decoders", "write_translation_checkpoint", (), BART),
    "whisper": ("speech", "write_whisper_checkpoint", (), {"model": WHISPER}),
}


class SequenceToys(TaskToys):
    """Toys by name of MODELS."""

    BUILD: ClassVar[dict[str, int]] = {"max_batch": 4}

    def exported(self, name):
        """See TaskToys."""
        module, function, arguments, options = MODELS[name]
        return self.toys.exported(getattr(importlib.import_module(module), function), *arguments, **options)

    def calibrated(self, name, scheme):
        """See TaskToys."""
        from encoder_decoders import WORDS
        from speech import write_clips

        from piston.calibration.recipe import Recipe

        lines = [" ".join(WORDS[first : first + 6]) for first in range(8)]
        data = write_clips if name == "whisper" else "\n".join(f"{one} {two}" for one in lines for two in lines)
        if scheme != "w8a8":
            data = None
        bounds = ("kl<=1000",)  # the weights are random
        return self.toys.calibrated(self.exported(name), Recipe(scheme=scheme), data, bounds=bounds, num_rows=6)

    def reference(self, name):
        """The module of transformers."""
        from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

        auto = AutoModelForSpeechSeq2Seq if name == "whisper" else AutoModelForSeq2SeqLM
        return auto.from_pretrained(self.checkpoint(name)).eval()


@pytest.fixture(scope="session")
def sequence_toys(toys):
    """Tiny encoder-decoders for text and for speech."""
    return SequenceToys(toys)
