import argparse
import base64
import json
from pathlib import Path

import numpy as np
import pytest

from piston.data.noise import FEWEST, code_points, is_noise, order_ratio

TEXTS = Path(__file__).parents[2] / "data/texts"
RNG = np.random.default_rng(11)
LANGUAGES = (TEXTS / "languages.txt").read_text(encoding="utf-8").split("\f")


def byte_ids(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


REAL = {
    "prose": (TEXTS / "prose.txt").read_text(encoding="utf-8"),
    "code": Path(argparse.__file__).read_text(encoding="utf-8"),
    "chats": (TEXTS / "chat.jsonl").read_text(encoding="utf-8"),
    "chinese": LANGUAGES[28],
    "arabic": LANGUAGES[23],
    "a page": (TEXTS / "technical.txt").read_text(encoding="utf-8")[:1500],
    "json": json.dumps([{"name": f"n{n}", "value": n * n} for n in range(300)]),
    "floats": "\n".join(f"{x:.6f},{y:.6f}" for x, y in RNG.standard_normal((2000, 2))),
    "one word": "no " * 1000,
}
NOISE = {
    "latin-1 bytes": RNG.bytes(50_000).decode("latin-1"),
    "printable": "".join(map(chr, RNG.integers(32, 127, 50_000))),
    "base64": base64.b64encode(RNG.bytes(50_000)).decode(),
    "hexadecimal": RNG.bytes(50_000).hex(),
    "shuffled prose": "".join(RNG.permutation(list(REAL["prose"]))),
}


@pytest.mark.parametrize("name", REAL)
def test_what_people_write_is_no_noise(name):
    assert order_ratio(code_points(REAL[name])) < 0.95
    assert not is_noise(code_points(REAL[name]))
    assert not is_noise(byte_ids(REAL[name]))


@pytest.mark.parametrize("name", NOISE)
def test_random_characters_are_noise(name):
    assert is_noise(code_points(NOISE[name]))


@pytest.mark.parametrize("vocab_size", [131, 300, 49_152, 256_000])
@pytest.mark.parametrize("size", [FEWEST, 5_000, 60_000])
def test_uniform_token_ids_are_noise(vocab_size, size):
    assert is_noise(RNG.integers(0, vocab_size, size))


def test_too_few_symbols_are_not_judged():
    assert not is_noise(RNG.integers(0, 300, FEWEST - 1))
