"""Write a Llama checkpoint of random weights, to measure speed at sizes of which no checkpoint is at hand.

python scripts/random_checkpoint.py DIR --layers 12. The other sizes are those of TinyLlama 1.1B, which has 22 layers.
The tokenizer has bytes alone. Answers are noise; speed depends on sizes, not on values.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("directory", type=Path)
for name, default in (
    ("layers", 22),
    ("hidden", 2048),
    ("mlp", 5632),
    ("heads", 32),
    ("kv-heads", 4),
    ("vocab", 32000),
):
    parser.add_argument(f"--{name}", type=int, default=default)
sizes = parser.parse_args()

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=sizes.vocab,
    hidden_size=sizes.hidden,
    intermediate_size=sizes.mlp,
    num_hidden_layers=sizes.layers,
    num_attention_heads=sizes.heads,
    num_key_value_heads=sizes.kv_heads,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=1,
)
torch.set_default_dtype(torch.bfloat16)
LlamaForCausalLM(config).save_pretrained(sizes.directory)

vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
fast.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
fast.save_pretrained(sizes.directory)
