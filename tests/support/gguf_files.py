"""GGUF files of the toys, written key by key from what each key means; and llama in numpy, from such a file."""

import json
import math
from pathlib import Path

import gguf
import numpy as np
from checkpoints import write_tokenizer
from gguf import GGUFValueType
from zoo import make

WINDOW = 7
# architecture: model type, norm key, what differs from the zoo's toy, further keys
TOYS = {
    "llama": ("llama", "rms", {}, {}),
    "qwen2": ("qwen2", "rms", {}, {}),
    "qwen3": ("qwen3", "rms", {"head_dim": 24}, {"attention.key_length": 24, "attention.value_length": 24}),
    "phi3": (
        "phi3", "rms", {"sliding_window": WINDOW},
        {"rope.dimension_count": 8, "attention.sliding_window": WINDOW},
    ),
    "stablelm": ("stablelm", "layer", {}, {"rope.dimension_count": 8, "use_parallel_residual": False}),
    "gpt2": ("gpt2", "layer", {"n_positions": 96, "n_inner": 112}, {}),
    "starcoder2": ("starcoder2", "layer", {"sliding_window": None}, {}),
    "nemotron": ("nemotron", "layer", {}, {"rope.dimension_count": 8}),
    "gemma2": (
        "gemma2", "rms", {"query_pre_attn_scalar": 16},
        {"attention.sliding_window": WINDOW, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        "gemma3_text", "rms",
        {
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        {
            "attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2,
            "rope.scaling.type": "linear", "rope.scaling.factor": 4.0,
        },
    ),
}  # fmt: skip
THETA = 5000.0  # no config class has it by default
_MATRICES_OF_GPT2 = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")


def toy_tokens(directory):
    """The vocabulary of the toys' tokenizer in order, its merges, and the type of each token."""
    write_tokenizer(directory)
    stored = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = {token["content"] for token in stored["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    return tokens, merges, [3 if token in special else 1 for token in tokens]


def write_gguf(path: Path, architecture: str = "llama", keys=None, tensors=None, drop=(), **overrides):
    """Write the toy of an architecture; `keys` and `tensors` add or replace, `drop` leaves out. Returns its model."""
    model_type, norm, differs, more = TOYS[architecture]
    tokens, merges, kinds = toy_tokens(path.parent)
    theta = {} if architecture in {"gpt2", "gemma3"} else {"rope_theta": THETA}
    model = make(model_type, **({"vocab_size": len(tokens)} | theta | differs | overrides))
    config = model.config
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    prefix = f"{architecture}."
    stated = {
        "general.name": "toy",
        f"{prefix}context_length": 96,
        f"{prefix}embedding_length": config.hidden_size,
        f"{prefix}block_count": config.num_hidden_layers,
        f"{prefix}feed_forward_length": 112,
        f"{prefix}attention.head_count": heads,
        f"{prefix}attention.head_count_kv": kv_heads,
        f"{prefix}attention.layer_norm_{'rms_' if norm == 'rms' else ''}epsilon": _epsilon(config),
        f"{prefix}rope.freq_base": THETA,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.eos_token_id": 2,
        **{prefix + key: value for key, value in more.items()},
        **(keys or {}),
    }
    if architecture == "gpt2":
        del stated["gpt2.rope.freq_base"]
    written = _tensors(model, architecture, heads, kv_heads) | (tensors or {})
    write_raw(
        path,
        architecture,
        {key: value for key, value in stated.items() if key not in drop and value is not None},
        {name: value for name, value in written.items() if name not in drop},
    )
    return model


def write_raw(path: Path, architecture: str, keys, tensors) -> None:
    """A GGUF file of just these keys and tensors, float32."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
        if isinstance(value, list) and value and isinstance(value[0], int) and not isinstance(value[0], bool):
            writer.add_key_value(key, value, GGUFValueType.ARRAY, GGUFValueType.INT32)
        else:
            writer.add_key_value(key, value, GGUFValueType[kinds[type(value)]])
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def header_size(path: Path) -> int:
    """Bytes before the first tensor's values."""
    return min(tensor.data_offset for tensor in gguf.GGUFReader(path).tensors)


def _epsilon(config) -> float:
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    return next(float(getattr(config, name)) for name in names if hasattr(config, name))


def _tensors(model, architecture, heads, kv_heads):
    """The model's weights under GGUF's names and in llama.cpp's layout."""
    name_map = gguf.get_tensor_name_map(
        {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture], model.config.num_hidden_layers
    )
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        base, _, suffix = name.rpartition(".")
        target = f"{name_map.get_name(base)}.{suffix}"
        value = tensor.float().numpy()
        if architecture == "llama" and "attn_q." in target:
            value = interleave(value, heads)
        elif architecture == "llama" and "attn_k." in target:
            value = interleave(value, kv_heads)
        elif architecture in {"gemma2", "gemma3", "nemotron"} and target.endswith("norm.weight"):
            value = value + 1
        elif architecture == "gpt2" and target.endswith(_MATRICES_OF_GPT2):
            value = value.T
        found[target] = value
    return found


def interleave(rows, heads):
    """Two halves of each head as pairs: rows (0, half), (1, half + 1), ..."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def frequencies(reader, rotary):
    """The angle of each pair at position 1, float64: what the rotary keys and rope_freqs.weight mean."""
    keys = {name: field.contents() for name, field in reader.fields.items()}
    base = keys.get("llama.rope.freq_base", 10_000.0)
    angles = base ** (-np.arange(0, rotary, 2) / rotary)
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            angles = angles / tensor.data.astype(np.float64)
    if keys.get("llama.rope.scaling.type", "linear") == "linear":
        angles = angles / (keys.get("llama.rope.scaling.factor") or keys.get("llama.rope.scale_linear") or 1)
    return angles


def llama_logits(path: Path, ids) -> np.ndarray:
    """Logits [seq, vocab] in float64 of a float32 llama file, straight from its keys and tensors."""
    reader = gguf.GGUFReader(path)
    keys = {name.removeprefix("llama."): field.contents() for name, field in reader.fields.items()}
    weights = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
    heads = keys["attention.head_count"]
    kv_heads = keys.get("attention.head_count_kv", heads)
    size = keys.get("attention.key_length", keys["embedding_length"] // heads)
    angles = np.arange(len(ids))[:, None] * frequencies(reader, size)
    turn = keys.get("rope.scaling.attn_factor", 1) * np.exp(1j * angles)[:, None, :]

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + keys["attention.layer_norm_rms_epsilon"]) * weights[name]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def rotate(x):
        pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack((pairs.real, pairs.imag), -1).reshape(x.shape)

    x = weights["token_embd.weight"][ids]
    seen = np.tril(np.ones((len(ids), len(ids)), bool))
    for layer in range(keys["block_count"]):
        block = f"blk.{layer}."
        y = norm(x, f"{block}attn_norm.weight")
        query = rotate(linear(y, f"{block}attn_q").reshape(len(ids), heads, size))
        key = rotate(linear(y, f"{block}attn_k").reshape(len(ids), kv_heads, size)).repeat(heads // kv_heads, 1)
        value = linear(y, f"{block}attn_v").reshape(len(ids), kv_heads, size).repeat(heads // kv_heads, 1)
        scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(size)
        scores = np.where(seen, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), value).reshape(len(ids), -1)
        x = x + linear(mixed, f"{block}attn_output")
        y = norm(x, f"{block}ffn_norm.weight")
        gate = linear(y, f"{block}ffn_gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, f"{block}ffn_up"), f"{block}ffn_down")
    x = norm(x, "output_norm.weight")
    return x @ weights.get("output.weight", weights["token_embd.weight"]).T
