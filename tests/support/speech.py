"""A seeded Whisper of one-second windows, its checkpoint, and sounds."""

import json
import wave
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
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


CONFIG = {
    "vocab_size": len(VOCABULARY),
    "num_mel_bins": MELS,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 56,
    "max_source_positions": POSITIONS,
    "max_target_positions": CONTEXT,
    "pad_token_id": END,
    "bos_token_id": END,
    "eos_token_id": END,
    "decoder_start_token_id": START,
}


def make_whisper(sharpness=1, **config):
    """The float32 model, the same on every machine, its logits multiplied by `sharpness`; `config` changes CONFIG."""
    torch.manual_seed(zlib.crc32(b"whisper"))
    model = WhisperForConditionalGeneration(WhisperConfig(**CONFIG | config)).eval()
    spread(model)
    with torch.no_grad():
        for parameter in model.model.decoder.layer_norm.parameters():
            parameter.mul_(sharpness)
    generation = model.generation_config
    generation._from_model_config = False  # else from_pretrained makes it anew from config.json
    settings = {
        "decoder_start_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
        "bos_token_id": END,
        "max_length": model.config.max_target_positions,
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


def write_whisper_checkpoint(directory: Path, *, model: Mapping[str, object] | None = None, **features: object):
    """Write a whole checkpoint of `make_whisper(**model)`; `features` change preprocessor_config.json. Returns it."""
    made = make_whisper(**model or {})
    made.save_pretrained(directory)
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
    (directory / "preprocessor_config.json").write_text(json.dumps(settings | features))
    return made


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


def write_clips(directory):
    """A list of 24 sounds of less than a window, as a file next to them."""
    names = [write_sound(directory / f"{seed}.wav", 0.5 + 0.02 * seed, seed).name for seed in range(24)]
    (directory / "clips.txt").write_text("\n".join(names))
    return directory / "clips.txt"


def samples_of(path):
    """The samples of a file of `write_sound`, float32 [samples]."""
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15


def features_of(samples):
    """What transformers' extractor makes of samples: log-mel features of one window, or of all beyond it."""
    is_long = len(samples) > RATE
    return WhisperFeatureExtractor(feature_size=MELS, chunk_length=1)(
        samples,
        sampling_rate=RATE,
        return_tensors="pt",
        truncation=not is_long,
        padding="longest" if is_long else "max_length",
    ).input_features


def segments_of(model, samples, **options):
    """What transformers' model says of them: (start, end, tokens) of each segment."""
    found = model.generate(
        features_of(samples),
        return_timestamps=True,
        return_segments=True,
        max_new_tokens=model.config.max_target_positions - 3,
        **{"language": "en", "task": "transcribe"} | options,
    )
    return [
        (round(float(segment["start"]), 2), round(float(segment["end"]), 2), segment["tokens"].tolist())
        for segment in found["segments"][0]
    ]


def words_of(token_ids):
    """The tokens that are text."""
    return [token_id for token_id in token_ids if token_id < END]
