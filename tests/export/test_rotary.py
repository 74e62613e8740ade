"""RoPE types at positions beyond the original context: parity with transformers, or refusal."""

import numpy as np
import pytest
import torch
from canonical import CanonicalSession, export_toy
from transformers import LlamaConfig
from zoo import make

from piston.core.errors import CheckpointError, MisuseError, UnsupportedModelError
from piston.export.rotary import positions_of, rotate, tables_of

ORIGINAL, EXTENDED = 24, 96
HALF_DIM = 8
BEYOND = 60  # prompt length: well beyond ORIGINAL
STATIC = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": np.linspace(1.0, 1.3, HALF_DIM).tolist(),
    "long_factor": np.linspace(1.0, 4.0, HALF_DIM).tolist(),
    "original_max_position_embeddings": ORIGINAL,
}


def toy(parameters, model_type="llama"):
    return make(
        model_type,
        rope_parameters=parameters,
        max_position_embeddings=EXTENDED,
        original_max_position_embeddings=ORIGINAL,
        partial_rotary_factor=1.0,
    )


def prompt_of(length):
    return np.random.default_rng(3).integers(3, 131, length).tolist()


def logits_of_both(model, out, length, context=None):
    prompt = prompt_of(length)
    with torch.no_grad():
        expected = model(torch.tensor([prompt]), use_cache=False).logits[0].numpy()
    spec = export_toy(model, out, context)
    session = CanonicalSession(out / "model.onnx", spec, 1, length)
    return session.step([prompt], [range(length)], [0], [length], [range(length)])[0], expected


@pytest.mark.parametrize("rope_type", STATIC)
def test_a_static_type_matches_beyond_the_original_context(rope_type, tmp_path):
    parameters = {"rope_type": rope_type, "rope_theta": 10000.0, **STATIC[rope_type]}
    actual, expected = logits_of_both(toy(parameters), tmp_path, BEYOND)
    assert np.abs(actual - expected).max() <= 1e-3


def test_the_types_really_differ_at_these_positions():
    tables = []
    for rope_type, more in STATIC.items():
        model = toy({"rope_type": rope_type, "rope_theta": 10000.0, **more})
        (by_type,) = tables_of(model, BEYOND).values()
        tables.append(by_type[None].cos)
    assert all(not torch.allclose(a, b, atol=1e-2) for i, a in enumerate(tables) for b in tables[:i])


def test_longrope_uses_the_short_factors_up_to_the_original_context(tmp_path):
    model = toy(LONGROPE, "phi3")
    assert positions_of(model.config, None) == ORIGINAL
    actual, expected = logits_of_both(model, tmp_path, ORIGINAL)
    assert np.abs(actual - expected).max() <= 1e-3


def test_longrope_uses_the_long_factors_when_a_longer_context_is_asked_for(tmp_path):
    actual, expected = logits_of_both(toy(LONGROPE, "phi3"), tmp_path, BEYOND, context=EXTENDED)
    assert np.abs(actual - expected).max() <= 1e-3


def test_dynamic_matches_up_to_the_trained_context(tmp_path):
    model = toy({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0})
    actual, expected = logits_of_both(model, tmp_path, EXTENDED)
    assert np.abs(actual - expected).max() <= 1e-3


def test_dynamic_beyond_the_trained_context_is_refused_with_both_numbers():
    model = toy({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0})
    with pytest.raises(MisuseError, match=r"--context 200 .* 96 positions"):
        positions_of(model.config, 200)


def test_an_unknown_type_is_refused_by_name_with_what_works():
    config = toy({"rope_type": "default", "rope_theta": 10000.0}).config
    config.rope_parameters = {"rope_type": "spiral"}
    with pytest.raises(UnsupportedModelError, match=r"'spiral'.*llama3, yarn, longrope"):
        positions_of(config, None)


@pytest.mark.parametrize("original", ["x", [1], -3])
def test_longrope_that_begins_at_no_number_of_positions_is_refused_in_one_line(original):
    config = LlamaConfig(head_dim=2 * HALF_DIM, max_position_embeddings=EXTENDED)
    config.rope_parameters = LONGROPE | {"original_max_position_embeddings": original}
    with pytest.raises(CheckpointError, match=r"^original_max_position_embeddings .* integer of 1 or more\.$"):
        positions_of(config, None)


def test_learned_positions_cannot_be_extended():
    config = make("gpt2").config
    with pytest.raises(MisuseError, match=r"--context 97 .* 96"):
        positions_of(config, 97)


def test_a_larger_context_extends_a_static_table():
    model = toy({"rope_type": "default", "rope_theta": 10000.0})
    (by_type,) = tables_of(model, 300).values()
    assert by_type[None].cos.shape == (300, HALF_DIM)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_the_onnx_operator(interleaved):
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 23]>
        agraph (float[1,2,5,8] x, float[5,4] cos, float[5,4] sin, int64[1,5] p) => (float[1,2,5,8] y) {{
            y = RotaryEmbedding <interleaved: int = {int(interleaved)}> (x, cos, sin, p)
        }}"""
    )
    rng = np.random.default_rng(0)
    x, cos, sin = (rng.normal(size=size).astype(np.float32) for size in ((1, 2, 5, 8), (5, 4), (5, 4)))
    (expected,) = ReferenceEvaluator(graph).run(None, {"x": x, "cos": cos, "sin": sin, "p": np.arange(5)[None]})
    actual = rotate(*map(torch.tensor, (x, cos, sin)), interleaved=interleaved)
    assert np.abs(actual.numpy() - expected).max() < 1e-6
