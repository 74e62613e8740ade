"""A language model without weights: a byte tokenizer, a chat template, scripted engines, and a bundle around them."""

import json
import zlib
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from piston.core.bundle.interface import CacheSpec
from piston.core.bundle.manifest import EngineSpec, Manifest, ModelSpec, TokenizerSpec, record_files
from piston.runtime.backends.scripted import ScriptedEngine
from piston.runtime.bundle import TEMPLATE, TOKENIZER
from piston.runtime.model import LanguageModel
from piston.runtime.text.chat_template import ChatTemplate
from piston.runtime.text.tokenizer import Tokenizer

SPECIAL = ["<pad>", "<s>", "<end>", "<user>", "<bot>", "<system>"]
PAD, BEGIN, END, USER, BOT, SYSTEM = range(len(SPECIAL))
MERGES = [("n", "o"), ("Ġ", "no"), ("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")]
CHAT = (
    "{% for message in messages %}<{{ 'bot' if message.role == 'assistant' else message.role }}>"
    "{{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def byte_backend():
    """Every byte is a token, a few pairs are merged: ` no` and `no` are two tokens, an emoji is four."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, *("".join(pair) for pair in MERGES)]
    backend = tokenizers.Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return backend


VOCAB_SIZE = len(SPECIAL) + 256 + len(MERGES)


def byte_tokenizer():
    return Tokenizer(byte_backend(), bos_token_id=BEGIN, eos_token_ids=(END,))


def ids_of(text):
    return byte_tokenizer().encode(text)


def history_script(vocab_size=VOCAB_SIZE, end=None, every=1):
    """Logits that depend on every token so far; `end` wins at each history whose hash is divisible by `every`."""

    def script(history):
        seed = zlib.crc32(np.asarray(history, np.int64).tobytes())
        logits = np.random.default_rng(seed).normal(size=vocab_size).astype(np.float32)
        if end is not None:
            logits[end] = 20.0 if seed % every == 0 else -20.0
        return logits

    return script


def answering(*answers, then=END, vocab_size=VOCAB_SIZE):
    """Answers of (prompt ids, answer ids): after a prompt comes its answer, then the end token."""

    def script(history):
        logits = np.zeros(vocab_size, np.float32)
        for prompt, answer in answers:
            if history[: len(prompt)] == tuple(prompt):
                said = len(history) - len(prompt)
                logits[answer[said] if said < len(answer) else then] = 10.0
        return logits

    return script


def replying(reply):
    """What follows the last <bot> token is `reply`, then the end token."""
    ids = ids_of(reply)

    def script(history):
        logits = np.zeros(VOCAB_SIZE, np.float32)
        if BOT in history:
            said = history[::-1].index(BOT)
            logits[ids[said] if said < len(ids) else END] = 10.0
        return logits

    return script


CACHE = CacheSpec.of(num_layers=2, num_kv_heads=2, head_dim=16, dtype="float32")


def manifest_of(**changes):
    fields = {
        "kind": "bundle",
        "model": ModelSpec(
            name="toy",
            architecture="ToyForCausalLM",
            num_layers=2,
            hidden_size=64,
            vocab_size=VOCAB_SIZE,
            max_positions=96,
            dtype="float32",
        ),
        "cache": CACHE,
        "tokenizer": TokenizerSpec(
            eos_token_ids=(END,), bos_token_id=BEGIN, special_tokens={"eos_token": "<end>"}, has_chat_template=True
        ),
        "files": {},
        "engines": (
            EngineSpec.of(
                target="ort-cpu", path="ort-cpu/model.onnx", cache=CACHE, requested={"max_batch": 2}, actual={}
            ),
        ),
    }
    return Manifest.of_decoder(**(fields | changes))


def toy_model(script, *, num_slots=1, capacity=400, template=CHAT, manifest=None):
    engine = ScriptedEngine(script, vocab_size=VOCAB_SIZE, num_slots=num_slots, capacity=capacity)
    chat = None if template is None else ChatTemplate(template, special_tokens={"eos_token": "<end>"})
    return LanguageModel(manifest or manifest_of(), engine, byte_tokenizer(), chat)


def said(script, text, max_tokens=32):
    """Greedy answer of a script to a text, by the plainest loop there is."""
    history = tuple(ids_of(text) if isinstance(text, str) else text)
    answer = []
    while len(answer) < max_tokens and (not answer or answer[-1] != END):
        answer.append(int(np.argmax(script(history + tuple(answer)))))
    return answer


def write_bundle(directory: Path, *, template=CHAT, **changes):
    """A bundle whose engine file is not ONNX: for whoever reads it, or puts a scripted engine in its place."""
    (directory / "ort-cpu").mkdir(parents=True, exist_ok=True)
    if not (directory / "ort-cpu/model.onnx").exists():
        (directory / "ort-cpu/model.onnx").write_bytes(b"not a graph")
    byte_backend().save(str(directory / TOKENIZER))
    if template is not None:
        (directory / TEMPLATE).write_text(template, encoding="utf-8")
    manifest = manifest_of(**({"files": record_files(directory)} | changes))
    manifest.write(directory)
    return manifest


def edit_manifest(directory: Path, edit):
    """Apply `edit` to the parsed manifest.json and write it back."""
    path = directory / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")
