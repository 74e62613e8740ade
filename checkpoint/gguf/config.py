"""The keys of a GGUF file as a transformers config: every key is read, known to change nothing, or refused by name.

What a key means is what llama.cpp computes from it. Values that a file leaves out are the format's own defaults, never
those of a config class, which belong to one checkpoint. docs/gguf.md lists what is honoured.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from piston.checkpoint.gguf.keys import Keys
from piston.checkpoint.gguf.rope import rope_parameters
from piston.checkpoint.gguf.vocabulary import check_vocabulary, end_ids
from piston.core.bundle.gguf_header import GgufHeader
from piston.core.errors import CheckpointError, UnsupportedModelError

# general.sampling.<key>: the name in generation_config
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True, slots=True)
class Family:
    """How the keys of one architecture are named in the config of its transformers model."""

    model_type: str
    norm: str = "rms_norm_eps"
    norm_key: str = "attention.layer_norm_rms_epsilon"
    names: Mapping[str, str] = field(default_factory=dict)  # config name -> the model's own, where it differs
    biases: Mapping[str, str] = field(default_factory=dict)  # config name -> the tensor whose presence it states
    rope: bool = True
    partial_rope: bool = False
    more: Callable[[Keys, dict[str, Any]], dict[str, Any]] | None = None


def _gemma2(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    window = keys.natural("attention.sliding_window", 4096)
    scale = config["hidden_size"] // config["num_attention_heads"] if config["num_hidden_layers"] == 46 else None  # noqa: PLR2004 - the 27B model
    return {
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0) or None,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0) or None,
        "query_pre_attn_scalar": scale or config["head_dim"],
        "sliding_window": window,
        "layer_types": _layer_types(keys, config, 2),
    }


def _gemma3(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    window = keys.natural("attention.sliding_window", 0)
    scale = config["hidden_size"] // config["num_attention_heads"] if config["num_hidden_layers"] == 62 else None  # noqa: PLR2004 - the 27B model
    every = config["rope_parameters"]
    local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 10_000.0)}
    return {
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0) or None,
        "query_pre_attn_scalar": scale or config["head_dim"],
        "sliding_window": window or None,
        "layer_types": _layer_types(keys, config, 6) if window else ["full_attention"] * config["num_hidden_layers"],
        "rope_parameters": {"full_attention": every, "sliding_attention": local},
    }


def _layer_types(keys: Keys, config: dict[str, Any], default: int) -> list[str]:
    """Every n-th layer attends to all; the pattern may also be one boolean a layer, true where there is a window."""
    count = config["num_hidden_layers"]
    pattern = keys.take("attention.sliding_window_pattern", default)
    if type(pattern) is int and pattern > 0:
        pattern = [(layer + 1) % pattern != 0 for layer in range(count)]
    if not isinstance(pattern, list) or len(pattern) != count:
        raise keys.wrong("attention.sliding_window_pattern", pattern, "a number, or one boolean for each layer")
    return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]


def _phi3(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    original = config["rope_parameters"].get("original_max_position_embeddings", config["max_position_embeddings"])
    window = keys.natural("attention.sliding_window", 0) or None
    return {"sliding_window": window, "original_max_position_embeddings": original}


def _stablelm(keys: Keys, _: dict[str, Any]) -> dict[str, Any]:
    parallel = not any(".ffn_norm." in name for name in keys.header.tensors)
    stated = keys.take("use_parallel_residual", parallel)
    if stated is not parallel:
        raise keys.wrong("use_parallel_residual", stated, f"{parallel}, as its tensors say")
    return {"use_parallel_residual": parallel}


_LAYER_NORM = "attention.layer_norm_epsilon"
_BIASES = {"attention_bias": "blk.0.attn_q.bias"}
_MLP_BIAS = {"mlp_bias": "blk.0.ffn_up.bias"}
_GPT2 = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
}
FAMILIES = {
    "llama": Family("llama", biases=_BIASES | _MLP_BIAS),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3", biases=_BIASES),
    "phi3": Family("phi3", partial_rope=True, more=_phi3),
    "stablelm": Family(
        "stablelm", "layer_norm_eps", _LAYER_NORM, partial_rope=True, more=_stablelm,
        biases={"use_qkv_bias": "blk.0.attn_q.bias"},
    ),
    "gpt2": Family("gpt2", "layer_norm_epsilon", _LAYER_NORM, _GPT2, rope=False),
    "starcoder2": Family("starcoder2", "norm_epsilon", _LAYER_NORM, biases={"use_bias": "blk.0.attn_q.bias"}),
    "nemotron": Family("nemotron", "norm_eps", _LAYER_NORM, partial_rope=True, biases=_BIASES | _MLP_BIAS),
    "gemma2": Family("gemma2", biases=_BIASES, more=_gemma2),
    "gemma3": Family("gemma3_text", biases=_BIASES, more=_gemma3),
}  # fmt: skip


def gguf_config(header: GgufHeader) -> Any:
    """The transformers config that the file's keys and tensors describe.

    Raises:
        UnsupportedModelError: an architecture that is not loaded from GGUF.
        CheckpointError: a key is missing, has an impossible value, or would change answers and is not honoured.
    """
    from transformers import AutoConfig

    if (part := header.part) is not None:
        raise CheckpointError(f"{header.name} is {part}; merge them first: {header.merging}")
    architecture = header.keys.get("general.architecture")
    if architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"GGUF architecture {architecture!r} of {header.name} is not supported; supported: "
            f"{', '.join(sorted(FAMILIES))}. Export the Hugging Face checkpoint it was made from."
        )
    family, keys = FAMILIES[architecture], Keys(header)
    keys.check_file()
    check_vocabulary(header)
    config = _sizes(keys, family)
    config |= {name: tensor in header.tensors for name, tensor in family.biases.items()}
    if family.more is not None:
        config |= family.more(keys, config)
    keys.check_all_read()
    if not family.rope:  # GPT-2 has neither
        del config["head_dim"], config["num_key_value_heads"]
    config = {family.names.get(name, name): value for name, value in config.items()}
    return AutoConfig.for_model(family.model_type, **config)


def _sizes(keys: Keys, family: Family) -> dict[str, Any]:
    header = keys.header
    config: dict[str, Any] = {
        "vocab_size": len(header.keys["tokenizer.ggml.tokens"]),
        "max_position_embeddings": keys.natural("context_length"),
        "hidden_size": keys.natural("embedding_length"),
        "num_hidden_layers": keys.natural("block_count"),
        "intermediate_size": keys.natural("feed_forward_length"),
        "num_attention_heads": keys.natural("attention.head_count"),
        family.norm: keys.number(family.norm_key),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": header.keys.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": header.keys.get("tokenizer.ggml.padding_token_id"),
        "eos_token_id": end_ids(header) or None,
    }
    heads = config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"] = keys.natural("attention.head_count_kv", heads)
    if kv_heads == 0 or heads % kv_heads:
        raise keys.wrong("attention.head_count_kv", kv_heads, f"a divisor of the {heads} heads")
    head_dim = keys.natural("attention.key_length", config["hidden_size"] // heads)
    config["head_dim"] = head_dim
    if (values := keys.natural("attention.value_length", head_dim)) != head_dim:
        raise keys.wrong("attention.value_length", values, f"{head_dim}, the size of a key")
    blocks = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if blocks != {str(layer) for layer in range(min(config["num_hidden_layers"], len(blocks) + 1))}:
        raise CheckpointError(
            f"{header.name} states {config['num_hidden_layers']} layers and holds tensors of {len(blocks)}; "
            "it is incomplete, or part of a split file that must be merged first."
        )
    if family.rope:
        rotary = keys.natural("rope.dimension_count", head_dim)
        if rotary != head_dim and not family.partial_rope:
            raise keys.wrong("rope.dimension_count", rotary, f"{head_dim}, the size of a head")
        config["rope_parameters"] = rope_parameters(keys, config["max_position_embeddings"], rotary)
        if family.partial_rope:
            # transformers multiplies and rounds down; the exact quotient could lose one
            config["rope_parameters"]["partial_rotary_factor"] = math.nextafter(rotary / head_dim, math.inf)
    return config


def set_sampling(generation: Any, header: GgufHeader) -> None:
    """Put the sampling defaults that the file states into transformers' generation config."""
    for key, name in SAMPLING.items():
        if (value := header.keys.get(f"general.sampling.{key}")) is not None:
            generation.do_sample = True
            setattr(generation, name, value)
