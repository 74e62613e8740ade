"""Encoder-decoders on the target ort-cpu:avx512: what is replaced in both graphs, and that the answers stay."""

import numpy as np
import pytest
from encoder_decoders import WORDS, write_text_checkpoint
from own_kernels import need_kernels

from piston.calibration.recipe import Recipe
from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.errors import EngineError
from piston.engines import build
from piston.runtime import kernels, load

# Sizes that the kernels take; T5's attention of the decoder over itself has a bias, and stays with ONNX Runtime.
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
MODELS = {"flan-t5": T5, "bart": BART, "marian": MARIAN}
# Attentions of the encoder, and of the decoder: over itself and over its source.
ATTENTIONS = {"flan-t5": (2, 2), "bart": (2, 4), "marian": (1, 4)}
SOURCES = [" ".join(WORDS[first : first + 6]) for first in range(8)]
TEXTS = [" ".join(WORDS[:count]) for count in (1, 3, 9)]


@pytest.fixture(scope="session")
def bundle(toys):
    """bundle(name, scheme) -> a bundle for ort-cpu and own kernels."""
    need_kernels()

    def of(name, scheme):
        model = toys.exported(write_text_checkpoint, name, **MODELS[name])
        text = "\n".join(f"{one} {two}" for one in SOURCES for two in SOURCES) if scheme == "w8a8" else None
        quantized = toys.calibrated(model, Recipe(scheme=scheme), text, bounds=("kl<=1000",), num_rows=6)
        return toys.built(quantized, ("ort-cpu", kernels.TARGET), max_batch=2, max_length=32)

    return of


@pytest.mark.parametrize("scheme", ["w8a8", "w8"])
@pytest.mark.parametrize("name", MODELS)
def test_products_of_both_graphs_are_replaced_and_logits_are_those_of_ort_cpu(bundle, name, scheme):
    path = bundle(name, scheme)
    actual = Manifest.read(path).engines[1].actual
    products = ("linears", "gated", "gelu", "blocks")
    for found in (actual["own_kernels"], actual["encoder"]["own_kernels"]):
        assert sum(found[kind] for kind in products) > 0
        assert found["parity"]["kernels"] > 0
    found = [part["own_kernels"]["attention"] for part in (actual["encoder"], actual)]
    assert tuple(found) == ATTENTIONS[name]
    logits = []
    for target in ("ort-cpu", kernels.TARGET):
        with load(path, target=target) as model:
            generations = model.prepare(TEXTS[:2])
            rows = []
            for generation in generations:
                slot = model.engine.cache.admit()
                model.engine.encode(slot, generation.request.source)
                rows.append(model.engine.prefill(slot, [*model.prefix, 5, 9, 4], 3).copy())
                model.engine.cache.release(slot)
            logits.append(np.stack(rows))
    error = np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[0])
    assert error < 0.02


def test_both_targets_verify(bundle):
    for target in ("ort-cpu", kernels.TARGET):
        assert main(["verify", str(bundle("flan-t5", "w8a8")), "--target", target]) == 0


def test_a_float_model_has_nothing_that_the_kernels_take(toys, tmp_path):
    need_kernels()
    model = toys.exported(write_text_checkpoint, "bart", **BART | {"d_model": 96})  # heads of 24 are none of theirs
    with pytest.raises(EngineError, match="Nothing in this model runs on Piston's own kernels; build it for ort-cpu"):
        build(model, tmp_path / "bundle", (kernels.TARGET,), max_batch=2, max_length=32)
