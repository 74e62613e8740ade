"""Seeded encoder-decoders of every supported type, and checkpoints of them with a tokenizer of whole words."""

import json
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, PreTrainedTokenizerFast
from zoo import spread

SPECIAL = ["<pad>", "</s>", "<unk>"]
WORDS = ["the", "sea", "is", "calm", "today", "and", "wind", "blows", "from", "north", "das", "Meer", "ist", "ruhig"]
PAD, END, UNKNOWN = range(len(SPECIAL))
VOCAB_SIZE, POSITIONS = 67, 48
COMMON = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 48,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": 3,
    "decoder_start_token_id": PAD,
    "forced_eos_token_id": None,
}
T5 = {"d_kv": 20, "d_ff": 56, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
BART = {
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 40,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}
BUCKETS = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}  # less than the sources have
# name -> model type, and what differs from COMMON. A stack of T5 has two layers at least, of which the first has the
# bias that both add; one model of each family has stacks of two and three.
ENCODER_DECODERS: dict[str, tuple[str, dict]] = {
    "t5": ("t5", T5 | BUCKETS),
    "flan-t5": ("t5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", T5 | BUCKETS),
    "umt5": (
        "umt5",
        T5 | BUCKETS | {"num_decoder_layers": 3},
    ),
    "bart": ("bart", BART | {"encoder_layers": 2, "decoder_layers": 3, "scale_embedding": True}),
    "mbart": ("mbart", BART),
    "pegasus": ("pegasus", BART),
    "marian": ("marian", BART),
    "m2m_100": ("m2m_100", BART | {"scale_embedding": True, "decoder_start_token_id": END}),
}


def make_encoder_decoder(name: str, **overrides: object) -> torch.nn.Module:
    """The float32 model of a name, the same on every machine; its weights are spread so that every path counts."""
    model_type, changes = ENCODER_DECODERS[name]
    config = AutoConfig.for_model(model_type, **(COMMON | changes | overrides))
    torch.manual_seed(zlib.crc32(name.encode()))
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    if name == "flan-t5":  # transformers ties them whatever the config says, but loads an untied checkpoint as it is
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    spread(model)
    for name_, buffer in model.named_buffers():
        if name_ == "final_logits_bias":
            buffer.copy_(torch.randn_like(buffer))
    return model.requires_grad_(requires_grad=False)


def write_text_tokenizer(directory: Path) -> None:
    """Whole words, each source followed by </s>."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", END)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)


def write_text_checkpoint(directory: Path, name: str = "t5", **overrides: object) -> torch.nn.Module:
    """Write a whole checkpoint; returns the model that was saved."""
    model = make_encoder_decoder(name, **overrides)
    model.save_pretrained(directory)
    write_text_tokenizer(directory)
    return model


WHISPER = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 40,
    "num_mel_bins": 8,
    "max_source_positions": 12,
    "max_target_positions": POSITIONS,
    "pad_token_id": PAD,
    "bos_token_id": END,
    "eos_token_id": END,
    "decoder_start_token_id": 3,
}


SPEECH_SETTINGS = {
    "no_timestamps_token_id": 5,
    "prev_sot_token_id": 6,
    "lang_to_id": {"<|en|>": 7, "<|de|>": 8},
    "task_to_id": {"transcribe": 9, "translate": 10},
    "alignment_heads": [[0, 1], [2, 0]],
    "max_initial_timestamp_index": 50,
    "decoder_start_token_id": 3,
}


def write_speech_checkpoint(directory: Path, **overrides: object) -> torch.nn.Module:
    """A seeded Whisper of 24 frames a window, with the tokenizer of whole words; returns the model."""
    config = AutoConfig.for_model("whisper", **(WHISPER | overrides))
    torch.manual_seed(3)
    model = AutoModelForSpeechSeq2Seq.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    spread(model)
    model.save_pretrained(directory)
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SPEECH_SETTINGS))
    write_text_tokenizer(directory)
    features = {"feature_size": 8, "sampling_rate": 3840, "hop_length": 160, "n_fft": 400, "chunk_length": 1}
    (directory / "preprocessor_config.json").write_text(json.dumps(features))
    return model.requires_grad_(requires_grad=False)


def write_translation_checkpoint(directory: Path, **overrides: object) -> torch.nn.Module:
    """A seeded NLLB of three languages, whose tokenizer puts the source's code in front; returns the model."""
    from transformers import NllbTokenizer

    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *(f"\u2581{word}" for word in WORDS),
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyzM",
    ]
    merges = []
    for word in WORDS:
        whole = "\u2581"
        for letter in word:
            merges.append((whole, letter))
            whole += letter
            if whole not in pieces:
                pieces.append(whole)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    languages = ["deu_Latn", "eng_Latn", "fra_Latn"]
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=merges, src_lang="eng_Latn", additional_special_tokens=languages)
    size = len(tokenizer)
    settings = {"vocab_size": size, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = make_encoder_decoder("m2m_100", **settings | overrides)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model
