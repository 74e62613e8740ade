"""A toy Llama as a GGUF file in float32, with a byte-level tokenizer."""

import json
from pathlib import Path

import gguf
import numpy as np
from checkpoints import VOCAB_SIZE, write_tokenizer
from zoo import COMMON, make

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
}


def write_gguf(directory: Path) -> Path:
    """Write directory/toy.gguf; transformers and llama.cpp read it."""
    directory.mkdir(parents=True)
    write_tokenizer(directory)
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    for path in directory.iterdir():
        path.unlink()
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    vocabulary += [f"<unused{i}>" for i in range(len(vocabulary), VOCAB_SIZE)]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer = gguf.GGUFWriter(directory / "toy.gguf", "llama")
    writer.add_context_length(COMMON["max_position_embeddings"])
    writer.add_embedding_length(COMMON["hidden_size"])
    writer.add_block_count(COMMON["num_hidden_layers"])
    writer.add_feed_forward_length(COMMON["intermediate_size"])
    writer.add_head_count(COMMON["num_attention_heads"])
    writer.add_head_count_kv(COMMON["num_key_value_heads"])
    writer.add_rope_dimension_count(COMMON["head_dim"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in vocabulary]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(COMMON["bos_token_id"])
    writer.add_eos_token_id(COMMON["eos_token_id"])
    writer.add_pad_token_id(COMMON["pad_token_id"])
    for name, tensor in make("llama", vocab_size=VOCAB_SIZE).state_dict().items():
        stored = name
        for ours, theirs in NAMES.items():
            stored = stored.replace(ours, theirs)
        writer.add_tensor(stored, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory / "toy.gguf"
