"""Seeded two-layer encoders, and checkpoints of them in the layout of sentence-transformers."""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast
from zoo import share_tables_of_torch

WORDS = ["a", "girl", "is", "styling", "her", "hair", "men", "play", "football", "on", "the", "beach", "query", ":"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCAB_SIZE, POSITIONS, HIDDEN = len(SPECIAL) + len(WORDS) + 13, 24, 32
COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "embedding_size": 24,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
# model type -> what differs from COMMON
ENCODERS: dict[str, dict] = {
    "albert": {},
    "bert": {},
    "camembert": {"type_vocab_size": 1},
    "deberta-v2": {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 4,  # fewer than the tokens of a row
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "distilbert": {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 56},
    "electra": {},
    "modernbert": {"local_attention": 6, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
    "mpnet": {},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
}


# Decoders: what they say of a whole text.
DECODERS: dict[str, dict] = {
    "gemma3_text": {  # as EmbeddingGemma; the window is one that transformers keeps when it loads the config again
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "use_bidirectional_attention": True,
    },
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
}
# task -> the class of transformers that its models are
HEADS = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "text-ranking": "AutoModelForSequenceClassification",
}
# What tests/export/test_encoder.py compares with transformers; docs/tasks.md has it as a table.
CASES = {task: [*ENCODERS] for task in HEADS}
for with_decoders in ("feature-extraction", "text-classification"):
    CASES[with_decoders] += DECODERS


def cases_table() -> str:
    """The table of docs/tasks.md."""
    types = sorted({model_type for types in CASES.values() for model_type in types})
    lines = [f"| model type | {' | '.join(CASES)} |", "|---" * (len(CASES) + 1) + "|"]
    for model_type in types:
        cells = ["yes" if model_type in CASES[task] else "" for task in CASES]
        lines.append(f"| {model_type} | {' | '.join(cells)} |")
    return "\n".join(lines)


def make_encoder(model_type: str, task: str = "feature-extraction", **overrides: object) -> torch.nn.Module:
    """A model whose weights are spread so that attention and norms matter."""
    share_tables_of_torch()
    config = AutoConfig.for_model(model_type, **(COMMON | (ENCODERS | DECODERS)[model_type] | overrides))
    torch.manual_seed(zlib.crc32(model_type.encode()))
    model = getattr(transformers, HEADS[task]).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1) * 0.3)
    return model.requires_grad_(requires_grad=False)


def write_encoder_tokenizer(directory: Path) -> None:
    """Whole words, written small, in a frame of [CLS] and [SEP]."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _save_tokenizer(tokenizer, directory)


def write_subword_tokenizer(directory: Path, *, max_length: int = POSITIONS) -> None:
    """Pieces of words of the alphabet, as BERT's tokenizer makes them; VOCAB_SIZE is not enough for its ids."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'"
    pieces = [
        *SPECIAL,
        *letters,
        *(f"##{letter}" for letter in letters),
        "wo",
        "##rld",
        "par",
        "##is",
        "in",
        "你",
        "好",
    ]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _save_tokenizer(tokenizer, directory, model_max_length=max_length)


SUBWORD_VOCAB = 96  # ids of the tokenizer above, and some more


def write_task_checkpoint(directory: Path, task: str, model_type: str = "bert", **config: object) -> torch.nn.Module:
    """Write a checkpoint with the head of a task and a tokenizer of subwords; returns the model."""
    model = make_encoder(model_type, task, vocab_size=SUBWORD_VOCAB, **config)
    model.save_pretrained(directory)
    write_subword_tokenizer(directory)
    return model


def encoder_toy(toys: Any, model_type: str, task: str, scheme: str = "fp") -> Path:
    """The model directory of a toy as Toys keeps it, calibrated on its words where a scheme is given.

    Only tasks whose output is logits are calibrated.
    """
    from piston.calibration.recipe import Recipe

    model_dir: Path = toys.exported(write_task_checkpoint, task, model_type)
    if scheme == "fp":
        return model_dir
    text = "\n".join(f"{one} {two}" for one in WORDS for two in WORDS) if scheme == "w8a8" else None
    recipe = Recipe(scheme=scheme, **({"block": 32} if scheme == "w4" else {}))
    bounds = ("distance<=100%",)  # the weights are random
    found: Path = toys.calibrated(model_dir, recipe, text, bounds=bounds, num_rows=4, seq_len=12, seed=1)
    return found


def _save_tokenizer(tokenizer: Tokenizer, directory: Path, **options: object) -> None:
    """With the frame of BERT, and its names of special tokens."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **options,
    ).save_pretrained(directory)


def write_sentence_checkpoint(
    directory: Path,
    model_type: str = "bert",
    *,
    pooling: dict | None = None,
    dense: torch.nn.Linear | None = None,
    normalize: bool = True,
    prompts: dict | None = None,
    default_prompt: str | None = None,
    max_length: int = 16,
    config: dict | None = None,
) -> torch.nn.Module:
    """Write a whole checkpoint as sentence-transformers saves it; returns the encoder. `config` overrides its sizes."""
    model = make_encoder(model_type, **(config or {}))
    model.save_pretrained(directory)
    write_encoder_tokenizer(directory)
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense is not None else []), *(["Normalize"] * normalize)]
    paths = ["" if kind == "Transformer" else f"{index}_{kind}" for index, kind in enumerate(kinds)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(directory / "modules.json", modules)
    write_json(directory / "1_Pooling/config.json", pooling or {"pooling_mode_mean_tokens": True})
    if dense is not None:
        sizes = {"in_features": dense.in_features, "out_features": dense.out_features, "bias": True}
        activation = "torch.nn.modules.activation.Tanh"
        write_json(directory / "2_Dense/config.json", sizes | {"activation_function": activation})
        tensors = {f"linear.{name}": value.detach() for name, value in dense.named_parameters()}
        save_file(tensors, directory / "2_Dense/model.safetensors")
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    saved = {"prompts": prompts or {}, "default_prompt_name": default_prompt}
    write_json(directory / "config_sentence_transformers.json", saved)
    return model


def write_json(path: Path, value: object) -> None:
    """Write a file, and the directory that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def mean_of_tokens(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """The mean of the hidden states of one row without padding, [hidden]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
