"""Random keys and bytes in a GGUF file: the answer is what numpy computes from the file, or there is one clear line."""

import inspect
import random

import gguf
import numpy as np
import pytest
import torch
from gguf_files import llama_logits, write_gguf

from piston.core.bundle.gguf_header import GgufHeader
from piston.core.errors import CheckpointError
from piston.export.checkpoint import load_config, load_model, locate
from piston.export.gguf.tokenizer import gguf_tokenizer

pytestmark = pytest.mark.slow

IDS = [5, 9, 200, 17, 33, 80, 41, 6]
FACTORS = np.array([1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 8.0])
VALUES = [
    0, 1, 2, 3, 7, 8, 16, 64, 96, 2**31, 2**32 - 1, 0.0, 0.5, 1.0, 2.0, 4.0, 1e-5, float("nan"), float("inf"), -1.0,
    True, False, "", "none", "linear", "yarn", "longrope", [1, 2], ["a", "b"], [True, False], [0.5, 1.5],
]  # fmt: skip
OFTEN = [
    "context_length", "embedding_length", "block_count", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scale_linear",
]  # fmt: skip


def known_keys(holder=gguf.constants.Keys):
    """Every key that the gguf package has a name for, below llama."""
    for name, value in vars(holder).items():
        if inspect.isclass(value):
            yield from known_keys(value)
        elif isinstance(value, str) and "." in value and not name.startswith("_"):
            yield value.replace("{arch}", "llama").replace("{id}", "0")


def verdict(path):
    """The line of a refusal, or the largest difference to numpy's logits."""
    try:
        checkpoint = locate(str(path))
        load_config(checkpoint)
        model = load_model(checkpoint)
        gguf_tokenizer(GgufHeader.read(path))
    except CheckpointError as refused:
        return str(refused)
    with torch.no_grad():
        actual = model(torch.tensor([IDS]), use_cache=False).logits[0].numpy()
    return float(np.abs(actual - llama_logits(path, IDS)).max())


def is_right(found):
    return found < 1e-3 if isinstance(found, float) else "\n" not in found


@pytest.mark.parametrize("seed", range(10))
def test_random_keys_are_honoured_or_refused(tmp_path, seed):
    # yarn has a test of its own: numpy's llama here does not compute it
    rng, path = random.Random(seed), tmp_path / "toy.gguf"  # noqa: S311 - the same each time
    names = sorted(set(known_keys()) - {"general.architecture"}) + [f"llama.{name}" for name in OFTEN] * 8
    taken = 0
    for _ in range(60):
        keys = {rng.choice(names): rng.choice(VALUES) for _ in range(rng.choice((1, 1, 2)))}
        drop = [rng.choice(names)] if rng.random() < 0.15 else []
        if "yarn" in keys.values():
            continue
        try:
            write_gguf(path, keys=keys, drop=drop, tensors={"rope_freqs.weight": FACTORS} if rng.random() < 0.3 else {})
        except Exception:  # noqa: BLE001, S112 - a value that the format cannot hold
            continue
        found = verdict(path)
        taken += isinstance(found, float)
        assert is_right(found), (keys, drop, found)
    assert taken > 3  # a fuzz that only meets refusals proves little


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_of_the_header_are_honoured_or_refused(tmp_path, seed):
    rng, path = random.Random(seed), tmp_path / "toy.gguf"  # noqa: S311 - the same each time
    write_gguf(path, tensors={"rope_freqs.weight": FACTORS})
    whole, end = path.read_bytes(), GgufHeader.read(path).data_start
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2))):
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        found = verdict(path)
        assert is_right(found), found
