"""Folding leaves the function of the model as it was, for each producer and each architecture that has it."""

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")
from canonical import CanonicalSession

from piston.calibration.graph.folding import apply_fold, find_fold
from piston.calibration.graph.linears import by_input, find_linears

PROMPT = np.random.default_rng(2).integers(3, 131, 17).tolist()


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma2", "starcoder2", "olmo2", "gpt_neox"])
def exported(request, toy):
    made = toy(request.param)
    return request.param, made.path, made.cache


def logits(path, spec):
    session, seq = CanonicalSession(path, spec, 1, 20), len(PROMPT)
    return session.step([PROMPT], [range(seq)], [0], [seq], [range(seq)])[0]


def folds_of(model):
    groups = by_input(find_linears(model)).values()
    return [(fold, group) for group in groups if (fold := find_fold(group)) is not None]


def test_random_factors_change_nothing(exported, tmp_path):
    _, path, spec = exported
    model, rng = ir.load(path), np.random.default_rng(0)
    for fold, group in folds_of(model):
        width = group[0].shape[0]
        factors = np.exp(rng.normal(size=width)).astype(np.float32)
        if fold.shared is not None:
            factors = factors[fold.shared]
        apply_fold(fold, group, factors)
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
    expected = logits(path, spec)
    assert np.abs(logits(tmp_path / "model.onnx", spec) - expected).max() < 1e-3


# norms that feed linears alone, gated products, and v_proj, in two layers
EXPECTED = {"llama": 8, "qwen2": 8, "gemma2": 8, "starcoder2": 6, "olmo2": 4, "gpt_neox": 4}


def test_every_place_that_can_absorb_a_division_is_found(exported):
    name, path, _ = exported
    assert len(folds_of(ir.load(path))) == EXPECTED[name]


def test_query_heads_that_share_values_share_their_factors(toy):
    folds = folds_of(ir.load(toy("llama").path))
    (fold,) = [fold for fold, group in folds if group[0].name == "model.layers.0.self_attn.o_proj"]
    assert len(fold.source) == 64
    assert np.array_equal(fold.source[:32], [*range(16), *range(16)])  # heads 0 and 1 read key-value head 0


def test_a_value_that_others_read_is_not_folded(exported):
    _, path, _ = exported
    model = ir.load(path)
    fold, group = folds_of(model)[0]
    del fold
    model.graph.outputs.append(group[0].input)
    extra = ir.node("Relu", [group[0].input])
    model.graph.append(extra)
    assert find_fold(group) is None
