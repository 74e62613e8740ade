"""Encoder-decoders on the target ort-cpu:avx512: what is replaced in both graphs, and that the answers stay."""

import numpy as np
import pytest
from encoder_decoders import WORDS, write_text_checkpoint
from own_kernels import need_kernels
from sequence_fixtures import BART

from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.errors import EngineError
from piston.engines import build
from piston.runtime import kernels, load

# Attentions of the encoder, and of the decoder: over itself and over its source.
ATTENTIONS = {"flan-t5": (2, 2), "bart": (2, 4), "marian": (1, 4)}
TEXTS = [" ".join(WORDS[:count]) for count in (1, 3)]


@pytest.mark.parametrize("scheme", ["w8a8", "w8"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_products_of_both_graphs_are_replaced_and_logits_are_those_of_ort_cpu(sequence_toys, name, scheme):
    need_kernels()
    path = sequence_toys.everywhere(name, scheme)
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
            generations = model.prepare(TEXTS)
            rows = []
            for generation in generations:
                slot = model.engine.cache.admit()
                model.engine.encode(slot, generation.request.source)
                rows.append(model.engine.prefill(slot, [*model.prefix, 5, 9, 4], 3).copy())
                model.engine.cache.release(slot)
            logits.append(np.stack(rows))
    error = np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[0])
    assert error < 0.02


def test_both_targets_verify(sequence_toys):
    need_kernels()
    for target in ("ort-cpu", kernels.TARGET):
        assert main(["verify", str(sequence_toys.everywhere("flan-t5", "w8a8")), "--target", target]) == 0


def test_a_float_model_has_nothing_that_the_kernels_take(toys, tmp_path):
    need_kernels()
    model = toys.exported(write_text_checkpoint, "bart", **BART | {"d_model": 96})  # heads of 24 are none of theirs
    with pytest.raises(EngineError, match="Nothing in this model runs on Piston's own kernels; build it for ort-cpu"):
        build(model, tmp_path / "bundle", (kernels.TARGET,), max_batch=2, max_length=32)
