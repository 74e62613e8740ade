"""A seeded two-layer model of every architecture: small enough to export in seconds, odd enough to catch a slip.

Sizes differ from one another (heads, key-value heads, hidden, feed-forward), windows are shorter than the prompts, and
weights are spread so that logits are of the order of one to ten.
"""

import functools
import zlib
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
WINDOW = 7  # shorter than every prompt of the parity check tests

# model type -> what differs from COMMON
ZOO: dict[str, dict] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "phi3": {"partial_rotary_factor": 0.5},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "gpt2": {"n_positions": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "tie_word_embeddings": True},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt_bigcode": {"n_positions": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "multi_query": True},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.7,
        "logits_scaling": 1.5,
    },
    "smollm3": {"no_rope_layers": [1, 0]},
    "starcoder2": {"sliding_window": WINDOW, "use_bias": True},
    "phi": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": True},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {
        "sliding_window": WINDOW,
        "logit_scale": 0.5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "ernie4_5": {},
    "exaone4": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "helium": {},
    "arcee": {},
    "apertus": {},
    "seed_oss": {},
    "hunyuan_v1_dense": {},
    "nemotron": {"partial_rotary_factor": 0.5},
    "persimmon": {"partial_rotary_factor": 0.5},
    "ministral": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "ministral3": {},
    "nanochat": {},
    "vaultgemma": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "opt": {"ffn_dim": 112, "word_embed_proj_dim": 64},
    "biogpt": {},
    "cwm": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "diffllama": {},
    "jais2": {},
    "hyperclovax": {},
}


def make(model_type: str, **overrides: object) -> torch.nn.Module:
    """The float32 model of a type, the same on every machine."""
    config = AutoConfig.for_model(model_type, **{**COMMON, **ZOO.get(model_type, {}), **overrides})
    torch.manual_seed(zlib.crc32(model_type.encode()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    spread(model)
    return model


def spread(model: torch.nn.Module, normal: Callable[..., torch.Tensor] = torch.randn) -> None:
    """Replace the tiny initial weights by ones that make every path count."""
    share_tables_of_torch()  # toys are made to be exported
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = normal(parameter.shape)
            if parameter.dim() == 1:
                base = parameter.clone() if "norm" in name or "ln_" in name else 0.0
                parameter.copy_(base + 0.2 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)


def share_tables_of_torch() -> None:
    """Make once what torch makes anew for every export, a third of a toy's time: its tables of functions."""
    from torch._export import utils
    from torch.export import decomp_utils, exported_program
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    build = ONNXRegistry.from_torchlib.__func__
    if not hasattr(build, "cache_info"):
        ONNXRegistry.from_torchlib = classmethod(functools.cache(build))
        found = functools.cache(utils._collect_all_valid_cia_ops)
        decomp_utils._collect_all_valid_cia_ops = exported_program._collect_all_valid_cia_ops = found
