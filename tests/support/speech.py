"""A seeded Whisper of one-second windows, its checkpoint, and sounds."""

import json
import wave
import zlib
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration
from zoo import spread

RATE = 16_000
WORDS = [f"Ġ{word}" for word in ("sea", "wind", "calm", "blows", "north", "and", "the", "is", "Berlin", "river")]
SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
STAMPS = [f"<|{index * 0.02:.2f}|>" for index in range(51)]
MELS, POSITIONS, CONTEXT = 20, 50, 40
HEADS = [[0, 1], [1, 3]]  # (layer, head) that tell where in the audio a word is
VOCABULARY = [*WORDS, *SPECIAL, *STAMPS]
IDS = {token: index for index, token in enumerate(VOCABULARY)}
END, START = IDS["<|endoftext|>"], IDS["<|startoftranscript|>"]


def make_whisper(seed="whisper"):
    """The float32 model, the same on every machine."""
    config = WhisperConfig(
        vocab_size=len(VOCABULARY),
        num_mel_bins=MELS,
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=56,
        decoder_ffn_dim=56,
        max_source_positions=POSITIONS,
        max_target_positions=CONTEXT,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
    )
    torch.manual_seed(zlib.crc32(seed.encode()))
    model = WhisperForConditionalGeneration(config).eval()
    spread(model)
    generation = model.generation_config
    generation._from_model_config = False  # else from_pretrained makes it anew from config.json
    settings = {
        "decoder_start_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
        "bos_token_id": END,
        "max_length": CONTEXT,
        "no_timestamps_token_id": IDS["<|notimestamps|>"],
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": IDS["<|en|>"], "<|de|>": IDS["<|de|>"]},
        "task_to_id": {"transcribe": IDS["<|transcribe|>"], "translate": IDS["<|translate|>"]},
        "suppress_tokens": [IDS[token] for token in SPECIAL[1:8]],
        "begin_suppress_tokens": [END],
        "max_initial_timestamp_index": 25,
        "return_timestamps": False,
        "alignment_heads": HEADS,
    }
    for name, value in settings.items():  # `update` takes only the names that every model has
        setattr(generation, name, value)
    return model.requires_grad_(requires_grad=False)


def write_whisper_checkpoint(directory: Path, **overrides: object):
    """Write a whole checkpoint; `overrides` change preprocessor_config.json. Returns the model that was saved."""
    model = make_whisper()
    model.save_pretrained(directory)
    backend = Tokenizer(models.WordLevel(IDS, unk_token="Ġand"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*SPECIAL])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(directory)
    settings = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": MELS,
        "sampling_rate": RATE,
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": 1,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings | overrides))
    return model


def sound(seconds, seed=0):
    """Tones that come and go, float32 [samples]."""
    rng, times = np.random.default_rng(seed), np.arange(int(RATE * seconds)) / RATE
    tones = [np.sin(2 * np.pi * hertz * times + phase) for hertz, phase in rng.uniform([80, 0], [4000, 6], (5, 2))]
    loud = np.interp(times, np.linspace(0, seconds, 20), rng.uniform(0, 0.3, 20))
    return (np.sum(tones, axis=0) * loud).astype(np.float32)


def write_sound(path, seconds, seed=0):
    """A WAV file of `sound`."""
    return write_samples(path, sound(seconds, seed) * 20_000 / 32_767)


def write_samples(path, samples):
    """A WAV file of float32 [samples] from -1 to 1."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32_767).astype("<i2").tobytes())
    return path
