"""calibrate on a toy from export to a quantized directory: what it writes, what it keeps, what it refuses."""

import json
import shutil

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
from canonical import CanonicalSession
from tokenizers import Tokenizer

from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions
from piston.calibration.float_graph import ModelGraph
from piston.calibration.recipe import Recipe
from piston.calibration.schemes import layerwise_gptq as sequential
from piston.calibration.schemes.residual import RATIOS
from piston.cli.main import main
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError, OutputExistsError, ShortfallError
from piston.data.rows import RowOptions

ROWS = RowOptions(num_rows=6, seq_len=24)
SENTENCE = "the quick brown fox jumps over the lazy dog while seven wizards brew strange potions by night"
# Relative to the logits' length. A random model has no redundancy: fourteen roundings in a row add up.
BOUNDS = {"w8a8": 0.12, "w8a8 outliers": 0.12, "w8": 0.03, "w8 blocks": 0.03, "w4": 0.4}
LINEARS = 14  # of two Llama layers
RECIPES = {
    "w8a8": Recipe(scheme="w8a8"),
    "w8a8 outliers": Recipe(scheme="w8a8", outliers=4),
    "w8": Recipe(scheme="w8"),
    "w8 blocks": Recipe(scheme="w8", block=32),
    "w4": Recipe(scheme="w4", block=32, rounding="gptq"),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = SENTENCE.split()
    rng = np.random.default_rng(0)
    lines = (" ".join(rng.choice(words, 12)) + "." for _ in range(200))
    path.write_text("\n\n".join(lines))
    return path


def logits(directory, cache):
    prompt = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(SENTENCE).ids
    seq = len(prompt)
    session = CanonicalSession(directory / "model.onnx", cache, 1, seq)
    return session.step([prompt], [range(seq)], [0], [seq], [range(seq)])[0]


@pytest.mark.parametrize("name", RECIPES)
def test_the_quantized_model_answers_nearly_as_the_float_one(model_dir, text, tmp_path, name):
    data = [] if name.startswith("w8 ") or name == "w8" else [text]
    result = calibrate(model_dir, tmp_path / "out", RECIPES[name], data, rows=ROWS)
    exact, rounded = (logits(path, result.manifest.cache) for path in (model_dir, tmp_path / "out"))
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < BOUNDS[name]
    assert result.manifest.model.scheme == RECIPES[name].scheme
    assert (len(result.quantized), result.kept) == (LINEARS, ["lm_head"])
    Manifest.read(tmp_path / "out").verify(tmp_path / "out")
    onnx.checker.check_model(tmp_path / "out" / "model.onnx")


def test_one_pair_stands_on_each_shared_activation(model_dir, text, tmp_path):
    calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8a8", remainder=False), [text], rows=ROWS)
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("QuantizeLinear") == 8  # q/k/v, o, gate/up and down of two layers
    assert operators.count("DequantizeLinear") == 8 + LINEARS


def test_a_remainder_stands_beside_the_linears_whose_record_says_so(model_dir, text, tmp_path):
    found = calibrate(model_dir, tmp_path / "out", RECIPES["w8a8"], [text], rows=ROWS)
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    products = [node.name for node in graph.node if node.name.endswith("/remainder/MatMul")]
    recorded = found.manifest.made_by["calibration"]["remainders"]
    assert [name.removesuffix("/remainder/MatMul") for name in products] == list(recorded)
    assert recorded
    assert all("down_proj" in name and ratio in RATIOS for name, ratio in recorded.items())


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_outliers_have_no_part_in_the_scale_of_the_others(model_dir, text, tmp_path, method):
    scales = []
    for outliers in (0, 8):
        recipe = Recipe(scheme="w8a8", method=method, smooth=False, remainder=False, outliers=outliers)
        calibrate(model_dir, tmp_path / str(outliers), recipe, [text], rows=ROWS)
        graph = onnx.load(tmp_path / str(outliers) / "model.onnx").graph
        constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
        quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        scales.append({node.input[0]: float(constants[node.input[1]]) for node in quantizers})
        sums = [node for node in graph.node if node.name.endswith("down_proj/outliers/Add")]
        assert len(sums) == (2 if outliers else 0)
        for node in sums:
            channels = constants[
                next(other.input[1] for other in graph.node if other.name == f"{node.name[:-3]}Gather")
            ]
            codes = constants[f"{node.name.removesuffix('/outliers/Add')}.weight.codes"]
            assert (len(channels), codes[channels].any()) == (8, False)
    without, with_outliers = scales
    smaller = {name for name in without if with_outliers[name] < 0.99 * without[name]}
    assert len(smaller) == 2  # down_proj's of two layers
    assert all(with_outliers[name] == without[name] for name in set(without) - smaller)


def test_the_worst_linears_stay_in_float_and_the_recorded_recipe_replays_to_the_same_bytes(model_dir, text, tmp_path):
    first = calibrate(model_dir, tmp_path / "first", RECIPES["w8a8"], [text], rows=ROWS, keep_worst=2)
    shapes = {linear.name: linear.shape for linear in ModelGraph.open(model_dir).linears}
    ranked = sorted(first.cost_alone, key=lambda name: -first.cost_alone[name] / np.prod(shapes[name]))
    assert set(first.kept) == {*ranked[:2], "lm_head"}
    assert set(first.cost_alone) == set(list(first.sensitivity)[:6])
    assert len(first.quantized) == LINEARS - 2
    recipe = Recipe.from_json(first.manifest.made_by["calibration"]["recipe"])
    assert first.weight_only == [name for name in first.kept if name != "lm_head"]
    second = calibrate(model_dir, tmp_path / "second", recipe, [text], rows=ROWS)
    assert (first.data_warning, second.data_warning) == (None, None)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_patterns_keep_linears_in_float(model_dir, tmp_path):
    recipe = Recipe(scheme="w8", keep=("*.layers.1.*", "*down_proj"))
    result = calibrate(model_dir, tmp_path / "out", recipe)
    assert result.quantized == [name for name in result.quantized if ".layers.0." in name and "down" not in name]
    assert len(result.quantized) == 6


def test_methods_choose_different_ranges(model_dir, text, tmp_path):
    scales = set()
    for method in ("minmax", "mse"):
        calibrate(model_dir, tmp_path / method, Recipe(scheme="w8a8", method=method), [text], rows=ROWS)
        model = onnx.load(tmp_path / method / "model.onnx")
        quantizer = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        (scale,) = [tensor for tensor in model.graph.initializer if tensor.name == quantizer.input[1]]
        scales.add(float(onnx.numpy_helper.to_array(scale)))
    assert len(scales) == 2


def test_rounding_to_nearest_needs_no_data(model_dir, tmp_path):
    result = calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8"))
    assert result.manifest.made_by["calibration"]["data"] is None


@pytest.mark.parametrize(
    ("recipe", "message"),
    [(Recipe(scheme="w8a8"), "--data"), (Recipe(scheme="w8", keep=("*.nothing",)), r"\*\.nothing.*names no linear")],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(model_dir, tmp_path, recipe, message):
    with pytest.raises(MisuseError, match=message):
        calibrate(model_dir, tmp_path / "out", recipe)
    assert list(tmp_path.iterdir()) == []


def test_fewer_than_no_linears_cannot_be_left_in_float(model_dir, tmp_path):
    with pytest.raises(MisuseError, match="--keep-worst -1 must be at least 0"):
        calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8a8"), ["builtin"], keep_worst=-1)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_directory_is_not_quantized_again(model_dir, tmp_path):
    calibrate(model_dir, tmp_path / "once", Recipe(scheme="w8"))
    with pytest.raises(MisuseError, match="quantized already"):
        calibrate(tmp_path / "once", tmp_path / "twice", Recipe(scheme="w8"))


def test_an_existing_output_is_refused(model_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(OutputExistsError):
        calibrate(model_dir, tmp_path / "out", Recipe(scheme="w8"))


def test_the_verb_prints_one_json_object(model_dir, text, tmp_path, capsys):
    words = ["calibrate", str(model_dir), "-o", str(tmp_path / "out"), "--scheme", "w4", "--block", "32"]
    assert main([*words, "--data", str(text), "--samples", "6", "--seq-len", "24", "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["scheme"], len(result["quantized"]), captured.err) == ("w4", LINEARS, "")
    assert result["calibration"]["recipe"]["rounding"] == "gptq"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--scheme", "w8a8", "--block", "32"],
        ["--scheme", "w8a8", "--rounding", "gptq", "--data", "builtin"],
        ["--scheme", "w8", "--method", "mse"],
        ["--scheme", "w8", "--no-smooth"],
        ["--scheme", "w8", "--outliers", "4"],
        ["--scheme", "w8a8", "--data", "builtin", "--outliers", "-1"],
        ["--scheme", "w8", "--kept", "int8"],
        ["--scheme", "w8", "--data", "builtin"],
        ["--recipe", "/nowhere.json"],
        ["--recipe", "/nowhere.json", "--block", "32"],
        ["--recipe", "/nowhere.json", "--no-smooth"],
    ],
)
def test_options_that_contradict_are_misuse_in_one_line(model_dir, tmp_path, capsys, words):
    assert main(["calibrate", str(model_dir), "-o", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_gptq_rounded_is_kept_where_the_result_misses_its_bound(model_dir, text, tmp_path, monkeypatch):
    def with_bound(bound):
        checked = CheckOptions(bounds=(bound,))
        return calibrate(model_dir, tmp_path / "q", RECIPES["w4"], [text], rows=ROWS, checked=checked)

    with pytest.raises(ShortfallError, match=r"outside its bound.*is kept in .*\.q\.calibration"):
        with_bound("kl<=0.0000001")
    assert [path.name for path in tmp_path.iterdir()] == [".q.calibration"]
    assert [path.name for path in (tmp_path / ".q.calibration").iterdir()] == ["rounded"]

    def again(*arguments):
        pytest.fail("weights were rounded a second time")

    monkeypatch.setattr(sequential, "gptq", again)
    result = with_bound("kl<=1000")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    plain = calibrate(
        model_dir, tmp_path / "plain", RECIPES["w4"], [text], rows=ROWS, checked=CheckOptions(bounds=("kl<=1000",))
    )
    assert result.manifest.files == plain.manifest.files


@pytest.mark.parametrize("goal", [".", "..", "text"])
def test_what_is_read_is_never_replaced(model_dir, text, tmp_path, goal):
    place = shutil.copytree(model_dir, tmp_path / "place/model")
    (place.parent / "text").mkdir()
    shutil.copyfile(text, place.parent / "text/rows.txt")
    out, data = (place.parent / goal if goal == "text" else place / goal), place.parent / "text/rows.txt"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MisuseError, match="would replace"):
        calibrate(place, out, RECIPES["w8"], [data], overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_recipe_that_is_replayed_or_data_is_not_replaced_by_what_is_saved(model_dir, text, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPES["w8"].to_json()))
    before = (tmp_path / "recipe.json").read_text()
    words = ["calibrate", str(model_dir), "-o", str(tmp_path / "q"), "--recipe", str(tmp_path / "recipe.json")]
    for option, path in (("--save-recipe", tmp_path / "recipe.json"), ("--report", model_dir / "manifest.json")):
        assert main([*words, option, str(path)]) == 2
        assert "would replace" in capsys.readouterr().err
    assert (tmp_path / "recipe.json").read_text() == before


def test_a_model_directory_of_links_is_quantized_as_any_other(model_dir, tmp_path):
    (tmp_path / "linked").mkdir()
    for path in model_dir.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    free = CheckOptions(bounds=("kl<=1000",), data="builtin")
    plain, linked = (
        calibrate(source, tmp_path / "q" / source.name, RECIPES["w8"], rows=ROWS, checked=free)
        for source in (model_dir, tmp_path / "linked")
    )
    assert plain.manifest.files == linked.manifest.files


def test_an_error_about_a_model_directory_of_links_names_it_and_not_its_copy(model_dir, tmp_path):
    calibrate(model_dir, tmp_path / "q", RECIPES["w8"], checked=CheckOptions(bounds=("kl<=1000",), data="builtin"))
    (tmp_path / "linked").mkdir()
    for path in (tmp_path / "q").iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    with pytest.raises(MisuseError, match=rf"^{tmp_path}/linked is quantized already"):
        calibrate(tmp_path / "linked", tmp_path / "again", RECIPES["w8"])
