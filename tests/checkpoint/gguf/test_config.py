"""A GGUF file answers as its own keys and tensors say, or is refused with the name of what nobody honours."""

import math

import numpy as np
import pytest
import torch
from canonical import CanonicalSession
from gguf_files import THETA, TOYS, llama_logits, write_gguf

from piston.checkpoint.checkpoint import load_config, load_model, locate
from piston.core.errors import CheckpointError, UnsupportedModelError
from piston.export import ExportOptions, export_model
from piston.export.rotary import positions_of, tables_of

IDS = [5, 9, 200, 17, 33, 80, 41, 6, 7, 150, 99, 12]


def loaded(path):
    checkpoint = locate(str(path))
    load_config(checkpoint)
    return load_model(checkpoint)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([IDS]), use_cache=False).logits[0].numpy()


@pytest.mark.parametrize("architecture", sorted(TOYS))
def test_a_file_of_every_architecture_answers_as_the_model_it_was_made_from(tmp_path, architecture):
    model = write_gguf(tmp_path / "toy.gguf", architecture)
    np.testing.assert_allclose(logits(loaded(tmp_path / "toy.gguf")), logits(model), atol=2e-4, rtol=1e-4)


def test_the_table_of_names_is_made_once_to_check_and_once_to_load(tmp_path, monkeypatch):
    from gguf import TensorNameMap

    write_gguf(tmp_path / "toy.gguf")
    made, make = [], TensorNameMap.__init__
    monkeypatch.setattr(TensorNameMap, "__init__", lambda *given: made.append(given) or make(*given))
    loaded(tmp_path / "toy.gguf")
    assert len(made) == 2


FACTORS = np.array([1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 8.0])
ROPE = {
    "no keys": ({}, {}),
    "factors": ({}, {"rope_freqs.weight": FACTORS}),
    "linear": ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}),
    "a factor alone": ({"rope.scaling.factor": 4.0}, {}),
    "the older name of the factor": ({"rope.scale_linear": 2.0}, {}),
    "factors and linear": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, {"rope_freqs.weight": FACTORS}
    ),
    "an attention factor": ({"rope.scaling.attn_factor": 1.2}, {}),
    "everything": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.2},
        {"rope_freqs.weight": FACTORS},
    ),
    "type none": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
    "another base": ({"rope.freq_base": 777.0}, {}),
    "the format's own base": ({"rope.freq_base": None}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", ROPE)
def test_a_llama_answers_as_numpy_computes_from_the_files_keys(tmp_path, case):
    keys, tensors = ROPE[case]
    path = tmp_path / "toy.gguf"
    write_gguf(path, keys={f"llama.{key}": value for key, value in keys.items()}, tensors=tensors)
    np.testing.assert_allclose(logits(loaded(path)), llama_logits(path, IDS), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("drop", "overrides"),
    [
        (["llama.attention.head_count_kv"], {"num_key_value_heads": 4}),
        ([], {"attention_bias": True, "mlp_bias": True}),
        ([], {"tie_word_embeddings": True}),
    ],
    ids=["as many key heads as heads", "biases", "tied"],
)
def test_a_llama_is_read_as_numpy_reads_it(tmp_path, drop, overrides):
    path = tmp_path / "toy.gguf"
    write_gguf(path, drop=drop, **overrides)
    np.testing.assert_allclose(logits(loaded(path)), llama_logits(path, IDS), atol=2e-4, rtol=1e-4)


def test_a_llama_named_mistral_has_no_window_that_its_file_does_not_state(tmp_path):
    path = tmp_path / "toy.gguf"
    write_gguf(path, keys={"general.name": "mistral"})
    assert getattr(load_config(locate(str(path))), "sliding_window", None) is None
    np.testing.assert_allclose(logits(loaded(path)), llama_logits(path, IDS), atol=2e-4, rtol=1e-4)


def angles_of(path, positions):
    """Cosines and sines of the exported tables as numpy arrays."""
    ((tables,),) = [list(found.values()) for found in tables_of(loaded(path), positions).values()]
    return tables.cos.numpy(), tables.sin.numpy()


def test_phi3_switches_to_long_factors_beyond_the_original_context(tmp_path):
    path = tmp_path / "toy.gguf"
    long, short = np.array([2.0, 4.0, 8.0, 16.0]), np.array([1.0, 1.1, 1.2, 1.3])
    keys = {"phi3.rope.scaling.original_context_length": 32, "phi3.rope.scaling.attn_factor": 1.25}
    write_gguf(path, "phi3", keys=keys, tensors={"rope_factors_long.weight": long, "rope_factors_short.weight": short})
    for positions, factors in ((32, short), (96, long)):
        angles = np.arange(positions)[:, None] * (THETA ** (-np.arange(0, 8, 2) / 8) / factors)
        cos, sin = angles_of(path, positions)
        np.testing.assert_allclose(cos, 1.25 * np.cos(angles), atol=1e-4)
        np.testing.assert_allclose(sin, 1.25 * np.sin(angles), atol=1e-4)
    assert positions_of(load_config(locate(str(path))), None) == 32


def test_yarn_turns_slow_pairs_less_and_fast_ones_as_before(tmp_path):
    path = tmp_path / "toy.gguf"
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 24}
    write_gguf(path, keys={f"llama.rope.scaling.{key}": value for key, value in keys.items()})
    plain = THETA ** (-np.arange(0, 16, 2) / 16)
    # A pair that turns `beta` times in the original context has this index: 32 and 1 bound the ramp.
    low, high = (16 * math.log(24 / (beta * 2 * math.pi)) / (2 * math.log(THETA)) for beta in (32, 1))
    ramp = np.clip((np.arange(8) - max(math.floor(low), 0)) / (math.ceil(high) - max(math.floor(low), 0)), 0, 1)
    angles = np.arange(96)[:, None] * (plain / 4 * ramp + plain * (1 - ramp))
    cos, sin = angles_of(path, 96)
    np.testing.assert_allclose(cos, (0.1 * math.log(4) + 1) * np.cos(angles), atol=1e-4)
    np.testing.assert_allclose(sin, (0.1 * math.log(4) + 1) * np.sin(angles), atol=1e-4)


def test_the_exported_graph_answers_as_the_file_says_and_ends_where_it_says(tmp_path):
    path, out = tmp_path / "toy.gguf", tmp_path / "out"
    end = {"tokenizer.ggml.eos_token_id": 4, "tokenizer.ggml.eot_token_id": 3}
    write_gguf(path, keys={"llama.rope.scaling.factor": 2.0} | end, tensors={"rope_freqs.weight": FACTORS})
    manifest = export_model(path, out, ExportOptions(context=32))
    assert manifest.tokenizer.eos_token_ids == (2, 3, 4)  # 2 is <|end|>, a control token
    session = CanonicalSession(out / "model.onnx", manifest.cache, 1, 32)
    seq = len(IDS)
    step = session.step([IDS], [range(seq)], [0], [seq], [range(seq)])
    np.testing.assert_allclose(step[0], llama_logits(path, IDS), atol=1e-3)


def refusal(path, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        load_config(locate(str(path)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.type", "dynamic"),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.rope.scaling.factor", 0.5),
        ("llama.rope.freq_base", 0.0),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.head_count_kv", 0),
        ("llama.rope.scaling.type", ["linear"]),
        ("tokenizer.ggml.add_bos_token", "yes"),
        ("tokenizer.ggml.pre", 7),
        ("llama.rope.scaling.alpha", 1000.0),
        ("llama.rope.dimension_count", 8),
        ("llama.attention.sliding_window", 16),
        ("llama.attention.scale", 0.3),
        ("llama.attention.causal", False),
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.attention.head_count", [4, 2]),
        ("llama.attention.value_length", 8),
        ("llama.logit_scale", 0.5),
        ("llama.residual_scale", 0.5),
        ("llama.embedding_scale", 3.0),
        ("llama.final_logit_softcapping", 30.0),
        ("llama.expert_count", 8),
        ("llama.a_key_of_tomorrow", 1),
        ("qwen2.rope.freq_base", 1e6),
        ("adapter.lora.alpha", 16.0),
        ("tokenizer.ggml.suppress_tokens", [4]),
        ("tokenizer.ggml.add_sep_token", True),
        ("general.sampling.mirostat", 2),
        ("general.type", "adapter"),
        ("llama.context_length", 0),
        ("llama.context_length", "many"),
        ("llama.embedding_length", 2**31),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
    ],
)
def test_a_key_that_is_not_honoured_is_refused_by_name(tmp_path, key, value):
    path = tmp_path / "toy.gguf"
    write_gguf(path, keys={key: value})
    assert key.partition(".")[2] in refusal(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.quantization_version", 2),
        ("general.base_model.0.name", "toy"),
        ("quantize.imatrix.file", "some.dat"),
        ("llama.expert_count", 0),
        ("llama.vocab_size", 1234),
        ("llama.attention.sliding_window", 96),
        ("llama.rope.scaling.finetuned", True),
        ("split.count", 1),
        ("tokenizer.ggml.fim_pre_token_id", 3),
    ],
)
def test_a_key_that_changes_no_answer_is_taken(tmp_path, key, value):
    path = tmp_path / "toy.gguf"
    write_gguf(path, keys={key: value})
    np.testing.assert_allclose(logits(loaded(path)), llama_logits(path, IDS), atol=2e-4, rtol=1e-4)


def test_what_transformers_says_of_a_config_is_told_whole(tmp_path):
    path = tmp_path / "toy.gguf"
    write_gguf(path, keys={"llama.embedding_length": 7})
    assert "7" in refusal(path)


@pytest.mark.parametrize("key", ["context_length", "block_count", "attention.head_count", "embedding_length"])
def test_a_missing_key_is_told_and_no_default_of_a_config_class_stands_in(tmp_path, key):
    path = tmp_path / "toy.gguf"
    write_gguf(path, drop=[f"llama.{key}"])
    assert f"llama.{key}" in refusal(path)


def test_an_architecture_that_is_not_loaded_from_gguf_is_refused_by_name(tmp_path):
    from gguf_files import write_raw

    write_raw(tmp_path / "toy.gguf", "rwkv7", {"rwkv7.context_length": 8}, {"token_embd.weight": np.zeros((4, 4))})
    assert "rwkv7" in refusal(tmp_path / "toy.gguf", UnsupportedModelError)


@pytest.mark.parametrize(
    ("tensors", "drop", "named"),
    [
        ({"blk.0.attn_q.bias": np.zeros(64)}, [], "blk.0.attn_k.bias"),
        ({"blk.1.attn_q.bias": np.zeros(64)}, [], "blk.1.attn_q.bias"),
        ({"blk.0.attn_sinks.weight": np.zeros(4)}, [], "blk.0.attn_sinks.weight"),
        ({"blk.2.attn_norm.weight": np.zeros(64)}, [], "2 layers"),
        ({}, ["blk.1.ffn_up.weight"], "blk.1.ffn_up.weight"),
        ({}, ["token_embd.weight"], "token_embd.weight"),
        ({"rope_freqs.weight": np.zeros(8)}, [], "rope_freqs.weight"),
        ({"rope_freqs.weight": np.ones(4)}, [], "rope_freqs.weight"),
        ({"rope_factors_long.weight": np.ones(8)}, [], "rope_factors_long.weight"),
        ({"blk.0.ffn_norm.weight": np.ones(32)}, [], "blk.0.ffn_norm.weight"),
    ],
)
def test_a_tensor_that_is_missing_or_not_taken_is_refused_by_name(tmp_path, tensors, drop, named):
    path = tmp_path / "toy.gguf"
    write_gguf(path, tensors=tensors, drop=drop)
    assert named in refusal(path)


def test_factors_in_a_file_whose_architecture_ignores_them_are_refused(tmp_path):
    path = tmp_path / "toy.gguf"
    write_gguf(path, "qwen2", tensors={"rope_freqs.weight": np.ones(8)})
    assert "rope_freqs.weight" in refusal(path)


def test_sampling_defaults_of_the_file_are_kept(tmp_path):
    path = tmp_path / "toy.gguf"
    write_gguf(path, keys={"general.sampling.temp": 0.5, "general.sampling.top_k": 7})
    generation = loaded(path).generation_config
    assert (generation.do_sample, generation.temperature, generation.top_k) == (True, 0.5, 7)
