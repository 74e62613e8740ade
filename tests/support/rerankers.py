"""Language models that rerank: seeded toys in the layouts of Qwen3-Reranker and of sentence-transformers."""

from pathlib import Path

import torch
from encoders import write_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from zoo import make

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = ["yes", "no", "the sea is calm", "Berlin is the capital of Germany", "Grüße, 你好, 👩‍👩‍👧"] * 8
VOCAB_SIZE = 340
TEMPLATE = (
    "{% for m in messages if m.role == 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% for m in messages if m.role == 'query' %}Q: {{ m.content }}{% endfor %}"
    "{% for m in messages if m.role == 'document' %} D: {{ m.content }}{% endfor %}<|im_end|>\nanswer:"
)


def write_tokenizer(directory: Path, template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE that has the tokens yes and no."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = template
    fast.save_pretrained(directory)
    return fast


def write_reranker(directory: Path, model_type: str = "qwen3", **overrides: object) -> torch.nn.Module:
    """A language model as Qwen3-Reranker was published: nothing says that it reranks; returns the model."""
    model = make(model_type, vocab_size=VOCAB_SIZE, max_position_embeddings=512, **overrides)
    model.save_pretrained(directory)
    write_tokenizer(directory, None)
    return model


def write_scored(
    directory: Path,
    true_id: int,
    false_id: int | None,
    *,
    template: str = TEMPLATE,
    instruction: str | None = None,
    activation: str = "torch.nn.modules.activation.Sigmoid",
    max_length: int = 128,
) -> torch.nn.Module:
    """The same as sentence-transformers saves it."""
    model = write_reranker(directory, "llama")
    write_tokenizer(directory, template)
    kinds = {"": "base.modules.transformer.Transformer", "1_LogitScore": "cross_encoder.modules.logit_score.LogitScore"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    write_json(directory / "modules.json", modules)
    write_json(directory / "1_LogitScore/config.json", {"true_token_id": true_id, "false_token_id": false_id})
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_length})
    prompts = {
        "prompts": {"web": instruction} if instruction else {},
        "default_prompt_name": "web" if instruction else None,
    }
    write_json(directory / "config_sentence_transformers.json", prompts | {"activation_fn": activation})
    return model
