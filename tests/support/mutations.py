"""Random damage to a checkpoint on disk, the same for the same generator: what people's files suffer, and worse."""

import contextlib
import functools
import inspect
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random

VALUES = (0, 1, -1, 2, 3, 7, 64, 10**9, 10**30, 0.5, 1.5, -2.0, math.nan, math.inf, True, False, None, "", "x", "2")
VALUES += ([], [1], [2, -1], [[5]], {}, {"x": 1})
CONFIG_KEYS = {
    "attention_bias": (True, False),
    "mlp_bias": (True, False),
    "tie_word_embeddings": (True, False),
    "sliding_window": (0, -1, 1, 5, None),
    "max_position_embeddings": (1, 2, 8, 10**9),
    "num_key_value_heads": (1, 3, 4),
    "num_hidden_layers": (1, 3, 10**6),
    "vocab_size": (1, 319, 10**8),
    "hidden_act": ("gelu", "relu", "swish", "nope"),
    "rope_theta": (1.0, 5e5, -1.0),
    "rope_scaling": ({"type": "linear", "factor": 2.0}, {"rope_type": "nope"}, {"rope_type": "yarn", "factor": 4.0}),
    "eos_token_id": (-1, 5, [5, 6], "x"),
    "dtype": ("float16", "bfloat16", "nope"),
    "quantization_config": ({"quant_method": "gptq", "bits": 4},),
    "architectures": (["LlamaModel"], [], None, "LlamaForCausalLM"),
}
GENERATION_KEYS = {
    "eos_token_id": (-1, 5, [5, 300], 10**6, None, 2.5),
    "bos_token_id": (-1, 7),
    "repetition_penalty": (1.3, 0, -1, "1.1"),
    "no_repeat_ngram_size": (1, 2),
    "suppress_tokens": ([5, 6, 7], list(range(300)), [-1]),
    "begin_suppress_tokens": ([40, 41], []),
    "bad_words_ids": ([[5], [6, 7]], [[]], [[2]]),
    "stop_strings": (["the"], "a", []),
    "forced_eos_token_id": (2,),
    "min_new_tokens": (3, 10**6),
    "max_length": (5, 4096),
    "max_new_tokens": (2, 0, -1),
    "num_beams": (1, 3),
    "do_sample": (True, False),
    "temperature": (0.0, 0.6),
    "sequence_bias": ([[[5], -10.0]],),
    "temprature": (1,),
}
ENCODER_KEYS = {
    "id2label": ({"0": "a"}, {"0": "a", "1": "a", "2": "b"}, {"1": "x", "2": "y", "3": "z"}, None, ["a"]),
    "problem_type": ("regression", "multi_label_classification", "nope", None),
    "type_vocab_size": (0, 1, -1, 10**9),
    "num_hidden_layers": (0, 1, 3, 10**6),
    "num_attention_heads": (0, 2, 3),
    "intermediate_size": (0, 10**9),
    "max_position_embeddings": (1, 8, 10**9),
    "vocab_size": (1, 10**8),
    "hidden_act": ("relu", "nope"),
    "layer_norm_eps": (0.0, -1.0, 1e-3),
    "pad_token_id": (-1, 5, 10**6, None),
    "is_decoder": (True,),
    "architectures": (["BertModel"], [], None, "x"),
    "dtype": ("float16", "nope"),
    "sentence_transformers": ({"activation_fn": "torch.nn.Tanh"}, "x", []),
}
SEQ2SEQ_KEYS = {
    "encoder_layers": (0, 1, 10**6),
    "decoder_layers": (0, 1, 10**6),
    "num_layers": (0, 1, 10**6),
    "num_decoder_layers": (0, 1, 10**6, None),
    "d_model": (0, 47, 10**9),
    "d_kv": (0, 1, 10**9),
    "num_heads": (0, 1, 4),
    "decoder_attention_heads": (0, 1, 5),
    "max_position_embeddings": (0, 8, 10**9),
    "max_source_positions": (0, 8, 10**9),
    "max_target_positions": (0, 8, 10**9),
    "num_mel_bins": (0, 8, 10**9),
    "vocab_size": (1, 10**8),
    "scale_embedding": (True, False),
    "tie_word_embeddings": (True, False),
    "feed_forward_proj": ("gated-gelu", "gated-silu", "nope"),
    "activation_function": ("relu", "nope"),
    "relative_attention_num_buckets": (0, 4, 10**9),
    "relative_attention_max_distance": (0, 4, 64),
    "decoder_start_token_id": (-1, 5, 10**6, None),
    "eos_token_id": (-1, 5, [1, 5]),
    "forced_eos_token_id": (5, -1, 10**6),
    "is_encoder_decoder": (False,),
    "task_specific_params": ({"translation_en_to_de": {"prefix": "the "}}, [], {"x": 5}, {"x": {"prefix": 5}}),
    "dtype": ("float16", "nope"),
}
SEQ2SEQ_GENERATION_KEYS = {
    "decoder_start_token_id": (-1, 5, 10**6, None),
    "forced_bos_token_id": (5, -1, 10**6),
    "num_beams": (1, 2, 3, 0, "x"),
    "length_penalty": (0.0, 2.0, "x"),
    "early_stopping": (True, "never", "x"),
    "min_length": (3, 10**6),
    "repetition_penalty": (1.3, 0),
    "no_repeat_ngram_size": (1, 2),
    "suppress_tokens": ([5, 6], [-1], [10**6]),
    "begin_suppress_tokens": ([5], []),
    "eos_token_id": (-1, 5, [1, 5], None),
    "max_length": (5, 4096),
    "lang_to_id": ({}, {"<|en|>": 10**6}, ["<|en|>"], {"<|en|>": "x"}),
    "task_to_id": ({}, {"transcribe": -1}, 5),
    "no_timestamps_token_id": (5, -1, 10**6, "x", None),
    "max_initial_timestamp_index": (0, -1, 10**6, "x", None),
    "alignment_heads": ([[0, 9]], [[9, 0]], [5], [], "x", None),
    "is_multilingual": (False, True),
    "return_timestamps": (True,),
}
FEATURE_KEYS = {
    "hop_length": (0, 80, 160.0, 10**9),
    "n_fft": (0, 401, 512, 10**9),
    "sampling_rate": (0, 8000, 10**9),
    "chunk_length": (0, 2, 1.0),
    "feature_size": (0, 80),
    "padding_value": (0.5, 0),
    "dither": (0.1, 0),
    "do_normalize": (True, False),
    "return_attention_mask": (True,),
}
# Of the toys in the fuzz that are no decoders: keys of a file by its name.
KEYS = {
    "encoder": {"config.json": ENCODER_KEYS},
    "seq2seq": {
        "config.json": SEQ2SEQ_KEYS,
        "generation_config.json": SEQ2SEQ_GENERATION_KEYS,
        "preprocessor_config.json": FEATURE_KEYS,
    },
    "decoder": {"config.json": CONFIG_KEYS, "generation_config.json": GENERATION_KEYS},
}
FACTORS = (1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 8.0)
GGUF_VALUES = (0, 1, 2, 3, 7, 8, 16, 64, 96, 2**31, 2**32 - 1, 0.0, 0.5, 1.0, 2.0, 4.0, 1e-5, math.nan, math.inf, -1.0)
GGUF_VALUES += (True, False, "", "none", "linear", "longrope", [1, 2], ["a", "b"], [True, False], [0.5, 1.5])
GGUF_OFTEN = (
    "context_length",
    "embedding_length",
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scale_linear",
)


def mutate(directory: Path, rng: Random, kind: str = "decoder") -> list[str]:
    """Damage one file of a checkpoint, at times two; says what was done. `kind` is one of KEYS."""
    gguf = next(directory.glob("*.gguf"), None)
    if gguf is not None:
        return [f"{gguf.name}: {_gguf(gguf, rng)}"]
    names = ["config.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    paths = [*(directory / name for name in names), next(directory.glob("*.safetensors"))]
    if kind != "decoder":
        known = [directory / name for name in KEYS[kind] if (directory / name).exists()]
        paths = [*known, *known, *sorted(directory.rglob("*.json")), *sorted(directory.rglob("*.safetensors"))]
    done: dict[Path, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = rng.choice(paths)
        if path not in done:
            done[path] = _damage(path, rng, KEYS[kind].get(path.name))
    return [*done.values()]


def _damage(path: Path, rng: Random, known: dict | None) -> str:
    if path.suffix == ".safetensors":
        return f"{path.name}: {_safetensors(path, rng)}"
    if not path.exists() or rng.random() < 0.05:
        return f"{path.name}: {_bytes(path, rng) if path.exists() else 'absent'}"
    data = json.loads(path.read_text(encoding="utf-8"))
    if known and rng.random() < 0.5:
        key = rng.choice(sorted(known))
        data[key] = rng.choice(known[key])
        done = f"{key} = {data[key]!r}"
    else:
        done = _json(data, rng)
    path.write_text(json.dumps(data), encoding="utf-8")
    return f"{path.name}: {done[:200]}"


def _json(data: dict | list, rng: Random) -> str:
    """Change one value anywhere in parsed JSON, or delete it."""
    where, node = "", data
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return f"{where} is empty"
        key = rng.choice(keys)
        where, value = f"{where}.{key}", node[key]
        if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
            break
        node = value
    choice = rng.random()
    if choice < 0.2:
        del node[key]
        return f"{where} deleted"
    if choice < 0.5 and isinstance(value, int | float) and not isinstance(value, bool):
        node[key] = rng.choice((value + 1, value - 1, value * 2, value // 2, -value, float(value), str(value)))
    else:
        node[key] = rng.choice(VALUES)
    return f"{where} = {node[key]!r}"


def _bytes(path: Path, rng: Random) -> str:
    """Cut the file, or change bytes of its first thousand."""
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        size = rng.randrange(len(data))
        path.write_bytes(data[:size])
        return f"cut to {size} bytes"
    places = [rng.randrange(min(len(data), 1000)) for _ in range(rng.choice((1, 1, 4)))]
    for place in places:
        data[place] = rng.randrange(256)
    path.write_bytes(data)
    return f"bytes {places} changed"


def _safetensors(path: Path, rng: Random) -> str:
    """Damage the header of a file of weights, one value, or which tensors there are."""
    if rng.random() < 0.1:
        return _bytes(path, rng)
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    if rng.random() < 0.5:
        rest, done = _tensors(header, rest, rng)
    else:
        done = _header(header, rng)
    text = json.dumps(header).encode()
    length = len(text)
    if rng.random() < 0.1:
        length = rng.choice((0, 10**12, length - 3))
        done += f", and a header length of {length}"
    path.write_bytes(struct.pack("<Q", length) + text + rest)
    return done


def _header(header: dict, rng: Random) -> str:
    """Change what the header says without the bytes that it describes."""
    names = sorted(name for name in header if name != "__metadata__")
    name, kind = rng.choice(names), rng.choice(("rename", "dtype", "shape", "offsets", "any"))
    if kind == "any":
        return _json(header, rng)
    if kind == "rename":
        header[name + rng.choice((".weight", "x", ".lora"))] = header.pop(name)
    elif kind == "dtype":
        header[name]["dtype"] = rng.choice(("F16", "F64", "I32", "U8", "F8_E4M3", "nope"))
    elif kind == "shape":
        shape = header[name]["shape"]
        header[name]["shape"] = rng.choice((shape[::-1], [*shape, 1], [10**12], []))
    else:
        header[name]["data_offsets"] = rng.choice(([0, 0], [0, 10**15], header[rng.choice(names)]["data_offsets"]))
    return f"{kind} of {name}"


def _tensors(header: dict, rest: bytes, rng: Random) -> tuple[bytes, str]:
    """A file that is right in itself, with another tensor, one less, or one of another type or with an odd value."""
    name = rng.choice(sorted(name for name in header if name != "__metadata__"))
    begin, end = header[name]["data_offsets"]
    kind = rng.choice(("drop", "extra", "halved", "value"))
    if kind == "drop":
        rest = _packed(header, rest, {name: b""})
        del header[name]
    elif kind == "extra":
        name = rng.choice(("model.layers.0.self_attn.q_proj.bias", "model.layers.7.mlp.up_proj.weight", "x"))
        header[name] = {"dtype": "F32", "shape": [2], "data_offsets": [len(rest), len(rest) + 8]}
        rest += struct.pack("<2f", 1.0, 2.0)
    elif kind == "halved":
        header[name]["dtype"] = rng.choice(("F16", "BF16"))
        values = struct.unpack(f"<{(end - begin) // 4}f", rest[begin:end])
        halves = b"".join(struct.pack("<e", value) for value in values)
        rest = _packed(header, rest, {name: halves})
    else:
        value = rng.choice((math.nan, math.inf, 1e5, 3.3e38, 0.0))
        rest = rest[:begin] + struct.pack("<f", value) + rest[begin + 4 :]
        name += f", the first is {value}"
    return rest, f"{kind}: {name}"


def _packed(header: dict, data: bytes, changed: dict[str, bytes]) -> bytes:
    """The tensors' bytes with some of them replaced; the offsets in the header follow."""
    packed = b""
    tensors = (item for item in header.items() if item[0] != "__metadata__")
    for name, tensor in sorted(tensors, key=lambda item: item[1]["data_offsets"]):
        begin, end = tensor["data_offsets"]
        piece = changed.get(name, data[begin:end])
        tensor["data_offsets"] = [len(packed), len(packed) + len(piece)]
        packed += piece
    return packed


def _gguf(path: Path, rng: Random) -> str:
    """Cut the file, flip bits of its header, or write the toy anew with other keys and tensors."""
    from gguf_files import header_size, write_gguf

    choice = rng.random()
    if choice < 0.1:
        return _bytes(path, rng)
    if choice < 0.4:
        data, size = bytearray(path.read_bytes()), header_size(path)
        bits = [(rng.randrange(size), rng.randrange(8)) for _ in range(rng.choice((1, 2)))]
        for place, bit in bits:
            data[place] ^= 1 << bit
        path.write_bytes(data)
        return f"bits {bits} flipped"
    names = gguf_keys()
    while True:
        keys = {rng.choice(names): rng.choice(GGUF_VALUES) for _ in range(rng.choice((1, 1, 2)))}
        drop = [rng.choice(names)] if rng.random() < 0.15 else []
        tensors = {"rope_freqs.weight": FACTORS} if rng.random() < 0.3 else {}
        with contextlib.suppress(Exception):  # a value that the format cannot hold
            write_gguf(path, keys=keys, drop=drop, tensors=tensors, num_hidden_layers=1)
            return f"{keys}, {drop} dropped{', with frequency factors' if tensors else ''}"


@functools.cache
def gguf_keys() -> list[str]:
    """Every key that the gguf package has a name for, below llama; those that change a llama most, most often."""
    import gguf

    names = set(_keys_in(gguf.constants.Keys)) - {"general.architecture"}
    return sorted(names) + [f"llama.{name}" for name in GGUF_OFTEN] * 8


def _keys_in(holder: type) -> Iterator[str]:
    for name, value in vars(holder).items():
        if inspect.isclass(value):
            yield from _keys_in(value)
        elif isinstance(value, str) and "." in value and not name.startswith("_"):
            yield value.replace("{arch}", "llama").replace("{id}", "0")
