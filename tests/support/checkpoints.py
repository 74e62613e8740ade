"""Checkpoints on disk: a toy of the zoo with a small byte-level tokenizer, as save_pretrained writes them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from zoo import make

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
CORPUS = ["the quick brown fox jumps over the lazy dog", "Grüße, 你好, مرحبا, 👩‍👩‍👧"] * 4
VOCAB_SIZE = 320


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE of VOCAB_SIZE tokens or fewer, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)


def write_checkpoint(
    directory: Path, model_type: str = "llama", dtype: torch.dtype = torch.float32, **overrides: object
) -> torch.nn.Module:
    """Write a whole checkpoint; returns the model that was saved."""
    model = make(model_type, vocab_size=VOCAB_SIZE, **overrides).to(dtype)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def edit_config(directory: Path, **changes: object) -> None:
    """Change keys of directory/config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
