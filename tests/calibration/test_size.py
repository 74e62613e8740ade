"""What weights take on disk against the bits that a scheme promises."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions
from piston.calibration.recipe import Recipe
from piston.data.rows import RowOptions

ANY = CheckOptions(bounds=("kl<=100",))  # noise is read, by a model of noise
ROWS = RowOptions(num_rows=4, seq_len=16)
WIDTH, INNER, KEYS, LAYERS = 256, 512, 128, 2
TABLES = {"embedding": "int8", "head": "int8"}
RECIPES = {
    "w8a8": Recipe(scheme="w8a8", **TABLES),
    "w8a8, two kept": Recipe(scheme="w8a8", keep=("*.down_proj",), **TABLES),
    "w8": Recipe(scheme="w8", **TABLES),
    "w4": Recipe(scheme="w4", block=128, **TABLES),
}


@pytest.fixture(scope="module")
def model_dir(toys):
    """Wide enough that scales and norms do not make up a tenth."""
    return toys.model_dir(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )


def ids(path, model_dir):
    vocab = Tokenizer.from_file(str(model_dir / "tokenizer.json")).get_vocab_size()
    rng = np.random.default_rng(0)
    np.save(path, np.minimum(rng.zipf(1.5, (20, 16)) - 1, vocab - 1))
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_weights_are_within_a_tenth_of_the_bits_promised(model_dir, tmp_path, name):
    data = [ids(tmp_path / "ids.npy", model_dir)] if RECIPES[name].reads_text else []
    result = calibrate(model_dir, tmp_path / "out", RECIPES[name], data, rows=ROWS, checked=ANY)
    vocab = result.manifest.model.vocab_size
    layer = 2 * WIDTH * WIDTH + 2 * WIDTH * KEYS + 3 * WIDTH * INNER
    bits = {"w4": 4}.get(name, 8)
    norms = 4 * WIDTH * (2 * LAYERS + 1)
    expected = LAYERS * layer * bits // 8 + vocab * WIDTH + norms
    assert result.size.promised == pytest.approx(expected, rel=0.05)  # there are rotary tables, too
    assert result.size.actual == (tmp_path / "out" / "model.onnx.data").stat().st_size
    assert abs(result.size.excess) < 0.1
    assert result.manifest.made_by["calibration"]["size"]["actual"] == result.size.actual


def test_a_linear_kept_in_float_shows_in_the_size(model_dir, tmp_path):
    data = [ids(tmp_path / "ids.npy", model_dir)]
    recipe = Recipe(scheme="w8a8", keep=("*.down_proj",), kept="float", **TABLES)
    result = calibrate(model_dir, tmp_path / "out", recipe, data, rows=ROWS, checked=ANY)
    assert result.weight_only == []
    assert result.size.excess > 0.3
