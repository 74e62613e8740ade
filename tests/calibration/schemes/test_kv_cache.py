"""INT8 caches: what scales are found, that they hold at every position, and what the graph computes."""

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from canonical import CanonicalSession
from quantized import round_cache

from piston.calibration.calibrate import calibrate
from piston.calibration.observe.cache_range import CacheRange, Rotation
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.kv_cache import RoundCachePass, observe_cache
from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress
from piston.core.errors import CalibrationError, MisuseError
from piston.data.rows import RowOptions
from piston.engines import build
from piston.runtime import SamplingParams, load

ROWS = RowOptions(num_rows=4, seq_len=24)
SENTENCE = "the quick brown fox jumps over a lazy dog while seven wizards brew strange potions by night"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(WORDS, 12)) + "." for _ in range(200)))
    return path


def rotated(pair, angle):
    """The pair of channels as a rotary embedding leaves it at some position."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (turn @ pair).astype(np.float32)


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_the_range_of_keys_holds_at_every_position(is_interleaved):
    rng = np.random.default_rng(3)
    pairs = rng.normal(size=(2, 4))  # four pairs of channels
    found = CacheRange("keys", Rotation(8, is_interleaved))

    def keys(angle):
        turned = rotated(pairs, angle)
        return (turned.T.ravel() if is_interleaved else turned.ravel()).reshape(1, 1, 1, 8)

    found.update(keys(0.1))
    for angle in np.linspace(0, 2 * np.pi, 50):
        assert (np.abs(keys(angle)[0, :, 0]) <= found.largest * 1.00001).all()
    assert found.largest.max() < np.linalg.norm(pairs, axis=0).max() * 1.00001  # and is no larger than it must be


def test_channels_beyond_the_rotation_keep_their_own_range():
    found = CacheRange("keys", Rotation(4, is_interleaved=False))
    found.update(np.array([3, 0, 4, 1, -7, 2], np.float32).reshape(1, 1, 1, 6))
    assert found.largest.tolist() == [[5, 1, 5, 1, 7, 2]]


def test_a_value_that_is_not_finite_is_named():
    with pytest.raises(CalibrationError, match=r"value\.3"):
        CacheRange("value.3").update(np.array([1, np.nan], np.float32).reshape(1, 1, 1, 2))


def test_scales_are_of_the_largest_magnitudes_that_were_written(model_dir, tmp_path):
    model = ir.load(model_dir / "model.onnx")
    rows = np.random.default_rng(1).integers(6, 250, (3, 20))
    scales = observe_cache(model_dir, model, [rows], "channel", tmp_path, Progress(quiet=True))
    cache = Manifest.read(model_dir).cache
    largest = np.zeros(cache.states[3].sizes(1, 1)[1::2])
    for row in rows:  # the canonical graph's own cache says what was written
        session = CanonicalSession(model_dir / "model.onnx", cache, 1, len(row))
        session.step([row], [range(len(row))], [0], [len(row)], [[0]])
        largest = np.maximum(largest, np.abs(session.cache[3][0]).max(axis=1))
    np.testing.assert_allclose(np.reshape(scales["present.1.value"], largest.shape), largest / 127, rtol=1e-4)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_written_graph_is_the_canonical_form(model_dir, granularity):
    cache = Manifest.read(model_dir).cache
    model, expected = (ir.load(model_dir / "model.onnx") for _ in range(2))
    shape = cache.states[0].sizes(1, 1) if granularity == "channel" else ()
    size = math.prod(shape)
    names = [f"present.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    scales = {name: np.random.default_rng(0).uniform(0.01, 0.1, size).astype(np.float32) for name in names}
    RoundCachePass({name: tuple(map(float, array)) for name, array in scales.items()}, cache)(model)
    round_cache(expected, {name: array.reshape(shape) for name, array in scales.items()})
    assert [(node.op_type, [item.name for item in node.outputs]) for node in model.graph] == [
        (node.op_type, [item.name for item in node.outputs]) for node in expected.graph
    ]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_float_model_with_an_int8_cache_is_built_and_generates(model_dir, text, tmp_path, granularity):
    recipe = Recipe(scheme="fp", kv="int8", kv_granularity=granularity)
    result = calibrate(model_dir, tmp_path / "out", recipe, [text], rows=ROWS)
    onnx.checker.check_model(tmp_path / "out" / "model.onnx")
    assert (result.manifest.model.scheme, result.quantized) == ("fp+kv8", [])
    assert result.check.far.data.window == 96 > result.check.near.data.window  # 4 x 24 positions
    manifest = build(tmp_path / "out", tmp_path / "bundle")
    assert (manifest.engines[0].cache.dtype, manifest.engines[0].requested["lm_head"]) == ("int8", "float32")
    with load(tmp_path / "bundle") as opened:
        assert opened.generate("hello", SamplingParams(max_tokens=5, ignore_eos=True)).token_ids


def test_a_saved_recipe_gives_the_same_bytes_without_reading_text(model_dir, text, tmp_path, capsys):
    words = ["calibrate", str(model_dir), "--quiet", "--seq-len", "24", "-o"]
    first = [*words, str(tmp_path / "first"), "--scheme", "fp", "--kv", "int8", "--data", str(text), "--samples", "4"]
    assert main([*first, "--save-recipe", str(tmp_path / "recipe.json")]) == 0
    again = [*words, str(tmp_path / "second"), "--recipe", str(tmp_path / "recipe.json"), "--check", "ppl=30%"]
    assert main(again) == 0, capsys.readouterr()  # on other text: none is read to calibrate
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_an_int8_cache_goes_with_integer_linears(model_dir, text, tmp_path):
    recipe = Recipe(scheme="w8a8", kv="int8", remainder=False)
    result = calibrate(model_dir, tmp_path / "out", recipe, [text], rows=ROWS)
    operators = [
        node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
    ]
    assert operators.count("QuantizeLinear") == 8 + 4
    assert result.manifest.model.scheme == "w8a8+kv8"
    engine = build(tmp_path / "out", tmp_path / "bundle").engines[0]
    assert (engine.cache.dtype, engine.requested["lm_head"], engine.actual["linears"]["int8"]) == ("int8", "int8", 1.0)


def test_a_recipe_of_another_model_is_refused(model_dir, text, tmp_path, capsys):
    recipe = Recipe(scheme="w8", model="0" * 64)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    words = ["calibrate", str(model_dir), "-o", str(tmp_path / "out"), "--recipe", str(tmp_path / "recipe.json")]
    assert main(words) == 2
    assert "another model: SHA-256 000000000000" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"present.0.key": (1.0,)}, "another model"),
        ({"present.0.key": (0.0,)}, "not all positive"),
        ({"present.0.key": (1.0, 1.0)}, "2 scales for present.0.key"),
    ],
)
def test_scales_that_do_not_fit_the_model_are_refused(model_dir, scales, message):
    with pytest.raises(MisuseError, match=message):
        RoundCachePass(scales, Manifest.read(model_dir).cache)(ir.load(model_dir / "model.onnx"))


@pytest.mark.parametrize(
    "words", [["--scheme", "fp"], ["--scheme", "w8", "--kv-granularity", "tensor"], ["--scheme", "fp", "--kv", "int8"]]
)
def test_a_cache_that_is_half_asked_for_is_misuse(model_dir, tmp_path, capsys, words):
    assert main(["calibrate", str(model_dir), "-o", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
